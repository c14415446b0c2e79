// Example pictures, drawn by the page, with labels.

const SIDE = 256;

function face(context) {
  disc(context, 128, 128, 104, "#ffcc33");
  for (const x of [94, 162]) disc(context, x, 106, 12, "#4a3510");
  context.beginPath();
  context.arc(128, 128, 62, 0.15 * Math.PI, 0.85 * Math.PI);
  context.strokeStyle = "#4a3510";
  context.lineWidth = 12;
  context.lineCap = "round";
  context.stroke();
}

function heart(context) {
  context.beginPath();
  context.moveTo(128, 222);
  context.bezierCurveTo(20, 150, 14, 44, 84, 40);
  context.bezierCurveTo(108, 39, 122, 56, 128, 74);
  context.bezierCurveTo(134, 56, 148, 39, 172, 40);
  context.bezierCurveTo(242, 44, 236, 150, 128, 222);
  context.fillStyle = "#d92b3a";
  context.fill();
}

function house(context) {
  context.fillStyle = "#e8d3a8";
  context.fillRect(58, 116, 140, 104);
  context.fillStyle = "#b5482f";
  context.beginPath();
  context.moveTo(34, 124);
  context.lineTo(128, 36);
  context.lineTo(222, 124);
  context.fill();
  context.fillStyle = "#6b4426";
  context.fillRect(108, 152, 40, 68);
  context.fillStyle = "#7cc0e8";
  context.fillRect(70, 136, 28, 28);
  context.fillRect(158, 136, 28, 28);
}

function disc(context, x, y, radius, color) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fillStyle = color;
  context.fill();
}

const FILES = { face, heart, house };
const LABELS = ["a smiling face", "a red heart", "a house", "a dog", "a flag", "a bicycle"];

/** Names with their labels. */
export const EXAMPLES = Object.keys(FILES).map((name) => ({ name, labels: LABELS }));

/** An example's picture as a PNG file. */
export async function exampleFile(name) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, SIDE, SIDE);
  FILES[name](context);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  return new File([blob], `${name}.png`, { type: "image/png" });
}
