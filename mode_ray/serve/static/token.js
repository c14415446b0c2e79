// The field for a bearer token, hidden until the server requires one.

const form = document.getElementById("token");
const field = document.getElementById("token-value");
const why = document.getElementById("token-why");
let waiting = null;

form.addEventListener("submit", (event) => {
  event.preventDefault();
  // Copied tokens may have spaces and line ends around them; header values must be ASCII.
  const value = field.value.trim();
  if (!/^[\x21-\x7e]+$/.test(value)) {
    why.textContent = "A token consists of letters, digits and signs, without spaces.";
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
