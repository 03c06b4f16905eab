// Sends each picture by itself, in turn, so that every answer shows as soon as it is there. What comes back is set as text.
"use strict";

const main = document.querySelector("main");
const drop = document.getElementById("drop");
const input = document.getElementById("files");
const message = document.getElementById("message");
const answers = document.getElementById("answers");
const mostFiles = Number(main.dataset.mostFiles);
const mostBytes = Number(main.dataset.mostBytes);
const multiLabel = main.dataset.multiLabel === "true";
const bytesAround = 2048; // of the request, besides the picture
const smallPicture = 128; // pixels; smaller ones are enlarged without blur

let queue = Promise.resolve();

function tell(text) {
  message.textContent = text;
  message.hidden = !text;
}

function take(files) {
  const pictures = Array.from(files);
  tell("");
  if (pictures.length > mostFiles) {
    tell(`${pictures.length} pictures are more than ${mostFiles} at a time.`);
    return;
  }
  // The newest on top, each group in its own order.
  const cards = pictures.map((picture) => newCard(picture));
  answers.prepend(...cards);
  pictures.forEach((picture, number) => {
    queue = queue.then(() => ask(picture, cards[number]));
  });
}

function newCard(picture) {
  const card = document.getElementById("answer").content.firstElementChild.cloneNode(true);
  card.querySelector("h2").textContent = picture.name;
  const thumbnail = card.querySelector(".view");
  const address = URL.createObjectURL(picture);
  thumbnail.onload = () => {
    thumbnail.onload = null;
    thumbnail.classList.toggle("sharp", thumbnail.naturalWidth < smallPicture);
    URL.revokeObjectURL(address);
  };
  thumbnail.src = address;
  card.querySelector("figcaption").textContent = "";
  return card;
}

async function ask(picture, card) {
  if (picture.size > mostBytes - bytesAround) {
    return fail(card, `Not sent: larger than ${Math.floor(mostBytes / 1048576)} MB.`);
  }
  card.querySelector(".state").textContent = "looking…";
  const form = new FormData();
  form.append("pictures", picture, picture.name);
  try {
    const response = await fetch("/predict", { method: "POST", body: form });
    const result = await response.json();
    if (result.error) return fail(card, result.error);
    const [answer] = result.answers;
    return answer.error ? fail(card, `Cannot be read: ${answer.error}`) : show(card, answer);
  } catch {
    return fail(card, "No answer: is predict.py still running?");
  }
}

function fail(card, reason) {
  card.classList.add("bad");
  card.querySelector(".pictures").hidden = true;
  card.querySelector(".state").textContent = reason;
}

function show(card, answer) {
  const view = card.querySelector(".view");
  view.src = answer.view;
  view.classList.remove("sharp");
  view.alt = `${answer.name}, as the model sees it`;
  card.querySelector("figcaption").textContent = "as the model sees it";
  const attention = card.querySelector(".attention");
  attention.src = answer.attention;
  attention.alt = `where the model looks in ${answer.name}`;
  card.querySelector(".looked").hidden = false;
  const state = card.querySelector(".state");
  state.textContent = answer.labels.length ? "" : "No label reaches its threshold.";
  state.hidden = answer.labels.length > 0;
  card.querySelector(".labels").replaceChildren(...answer.labels.map(newLabel));
}

function newLabel(label) {
  const line = document.getElementById("label").content.firstElementChild.cloneNode(true);
  line.querySelector(".label").textContent = label.name;
  line.querySelector(".percent").textContent = `${(100 * label.probability).toFixed(1)} %`;
  const bar = line.querySelector(".bar span");
  requestAnimationFrame(() => { bar.style.width = `${100 * label.probability}%`; });
  return line;
}

input.addEventListener("change", () => { take(input.files); input.value = ""; });
for (const kind of ["dragover", "drop"]) {
  document.addEventListener(kind, (event) => event.preventDefault()); // a miss must not leave the page
}
document.addEventListener("dragover", () => drop.classList.add("over"));
document.addEventListener("dragleave", () => drop.classList.remove("over"));
document.addEventListener("drop", (event) => {
  drop.classList.remove("over");
  if (event.dataTransfer.files.length) take(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) take(event.clipboardData.files);
});
