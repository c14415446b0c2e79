// Requests to the API. A 401 asks for the token and repeats the request; every other error becomes one sentence.

import { askForToken } from "./token.js";

export class ApiError extends Error {
  constructor(message, status, field) {
    super(message);
    this.status = status;
    this.field = field;
  }
}

let token = null;

/** Whether the server requires a token, which plain links cannot carry. */
export const needsToken = () => token !== null;

/** Ask the API; `body` makes it a POST of JSON. Returns a successful response. */
export async function ask(path, { body, signal } = {}) {
  for (;;) {
    const response = await send(path, body, signal);
    if (response.ok) return response;
    const error = await errorOf(response);
    if (response.status !== 401) throw error;
    token = await askForToken(token === null ? "This server requires a token." : "The server does not know that token.");
    signal?.throwIfAborted();
  }
}

/** The JSON of an answer; see `ask`. */
export async function askJson(path, options) {
  const response = await ask(path, options);
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server's answer is not JSON.", response.status);
  }
}

async function send(path, body, signal) {
  const headers = {};
  if (token !== null) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const options = { method: body === undefined ? "GET" : "POST", headers, signal };
  if (body !== undefined) options.body = JSON.stringify(body);
  try {
    // Relative to the URL of the page.
    return await fetch(new URL(path, document.baseURI), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.", 0);
  }
}

async function errorOf(response) {
  const answer = await response.json().catch(() => null);
  const error = answer?.error;
  if (typeof error?.message === "string") return new ApiError(sentence(error.message), response.status, error.field);
  // A proxy in front of the application answers in plain text.
  return new ApiError(`The server answered ${response.status}: try again in a moment.`, response.status);
}

const sentence = (message) => {
  const begun = message.charAt(0).toUpperCase() + message.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
};

/** A file's content in base64. */
export function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result.slice(reader.result.indexOf(",") + 1)));
    reader.addEventListener("error", () => reject(new ApiError(`${file.name} cannot be read.`, 0)));
    reader.readAsDataURL(file);
  });
}
