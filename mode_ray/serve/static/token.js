// The field for a bearer token: there only once the server asks for one.

const form = document.getElementById("token");
const field = document.getElementById("token-value");
const why = document.getElementById("token-why");
let waiting = null;

form.addEventListener("submit", (event) => {
  event.preventDefault();
  // Spaces and line ends come along when a token is copied; header values must be Latin letters.
  const value = field.value.trim();
  if (!/^[\x21-\x7e]+$/.test(value)) {
    why.textContent = "A token has letters, digits and signs, without spaces.";
    return;
  }
  form.hidden = true;
  field.value = "";
  const { resolve } = waiting;
  waiting = null;
  resolve(value);
});

/** Show the field; several requests that need a token wait for the same one. */
export function askForToken(reason) {
  if (waiting === null) {
    waiting = {};
    waiting.promise = new Promise((resolve) => {
      waiting.resolve = resolve;
    });
  }
  form.hidden = false;
  why.textContent = reason;
  field.focus();
  return waiting.promise;
}
