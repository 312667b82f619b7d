// The playground: an image goes to /predict, the answer comes back as a person reads it. All state is in `now`.

const $ = (id) => document.getElementById(id);
const TOP_K = 5;
const SMALL_SIDE = 64; // pixels; models up to this size, of one channel, can be drawn for
const DRAWING_SIDE = 336; // pixels of the pad
const DRAWING_PAUSE = 250; // milliseconds after a stroke before it is sent

const now = { model: null, image: null, name: "", classIndex: null, request: 0, url: "", key: "", stream: null };

// ---- words ----

const percent = (share) => {
  if (share < 0.001) return "under 0.1 %";
  if (share > 0.999) return "over 99.9 %";
  return `${(share * 100).toFixed(1)} %`;
};
const exact = (share) => `${+(share * 100).toFixed(2)} %`;
const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
const shellQuoted = (text) => (/^[\w./:@%+,=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// ---- the model ----

const headers = () => (now.key ? { "X-API-Key": now.key } : {});

async function loadModel() {
  const response = await fetch("model", { headers: headers() }).catch(() => null);
  if (!response?.ok) {
    $("model-line").textContent = "The model’s facts cannot be read.";
    if (response?.status === 401) showProblem(await response.json());
    return;
  }
  const model = (now.model = await response.json());
  const count = model.labels.length.toLocaleString("en");
  $("model-line").textContent = `${model.name}, version ${model.version}: ${count} classes`;
  $("description").textContent = model.description;
  const some = model.labels.filter((_, index) => index % Math.ceil(model.labels.length / 8) === 0);
  $("known").textContent = `It knows ${count} classes, such as ${some.join(", ")}.`;
  $("labels-summary").textContent = `All ${count} labels`;
  showLabels();
  $("fact-list").replaceChildren(...factsOf(model).flatMap(([name, ...said]) => [element("dt", {}, name), element("dd", {}, ...said)]));
  const { channels, height, width, polarity } = model.input;
  $("draw").hidden = channels !== 1 || Math.max(height, width) > SMALL_SIDE;
  $("pad").width = DRAWING_SIDE;
  $("pad").height = Math.round((DRAWING_SIDE * height) / width);
  pen.paper = polarity === "light_on_dark" ? "#fff" : "#000"; // the first takes both; others are mostly trained on light strokes
  pen.ink = polarity === "light_on_dark" ? "#1b2130" : "#fff";
}

function factsOf({ input, accept, figures, temperature, provenance, sha256, provider, created }) {
  const small = (text) => element("small", {}, text);
  const crop = input.resize === "crop" && input.crop_fraction < 1 ? `crop of ${exact(input.crop_fraction)}` : input.resize;
  const facts = [["Input", `${input.width} × ${input.height} pixels, ${input.channels === 1 ? "grey" : "colour"}, ${crop}`]];
  for (const figure of figures) {
    facts.push([
      "Accuracy",
      `${exact(figure.accuracy)} of ${figure.n.toLocaleString("en")} images`,
      small(`${figure.data}; macro-F1 ${exact(figure.macro_f1)}, calibration error ${figure.ece.toFixed(4)}, log loss ${figure.log_loss.toFixed(4)}`),
      small(figure.measured_by),
    ]);
  }
  if (accept) {
    const shares = `where it was chosen, ${exact(accept.precision)} of the accepted answers were right, and ${exact(accept.coverage)} were accepted`;
    facts.push(["Accepts from", percent(accept.threshold), small(`${shares}: ${accept.chosen_on}`)]);
  }
  facts.push(["Calibration", `temperature ${+temperature.toFixed(3)}`]);
  const trained = provenance.n_training_images.toLocaleString("en");
  facts.push(["Origin", provenance.recipe, small(`${trained} training images; ${[provenance.licence, provenance.note].filter(Boolean).join("; ")}`)]);
  facts.push(["File", `sha256 ${sha256.slice(0, 16)}…`, small(`made ${created.slice(0, 10)}, runs on ${provider.replace("ExecutionProvider", "")}`)]);
  return facts;
}

function showLabels() {
  const wanted = $("labels-filter").value.toLowerCase();
  const found = now.model.labels.filter((label) => label.toLowerCase().includes(wanted));
  $("labels").textContent = found.join(" · ") || "No label has that in it.";
}

// ---- the request ----

function query() {
  const parts = { top_k: TOP_K, explain: "true", ...(now.classIndex === null ? {} : { class_index: now.classIndex }) };
  return new URLSearchParams(parts).toString();
}

async function classify() {
  const request = ++now.request; // an answer that comes after a newer question is dropped
  document.body.classList.add("busy");
  showCode();
  const begun = performance.now();
  let response;
  let answer;
  try {
    response = await fetch(`predict?${query()}`, { method: "POST", body: now.image, headers: { "Content-Type": "application/octet-stream", ...headers() } });
    answer = await response.json();
  } catch {
    answer = { title: "The service cannot be reached", detail: "Nothing came back. Is it running, and is the network there?" };
  }
  if (request !== now.request) return;
  document.body.classList.remove("busy");
  if (!response?.ok) return showProblem(answer);
  showAnswer(answer);
  showTimes(response.headers.get("Server-Timing") ?? "", performance.now() - begun);
}

function use(image, name) {
  now.image = image;
  now.name = name;
  now.classIndex = null;
  URL.revokeObjectURL(now.url);
  now.url = URL.createObjectURL(image);
  $("heat").hidden = $("heat-controls").hidden = true;
  Object.assign($("save"), { href: now.url, download: name, textContent: name });
  classify();
}

function showLayer(id) {
  if (id !== "camera") stopCamera();
  for (const layer of ["photo", "unseen", "pad", "camera"]) $(layer).hidden = layer !== id;
  $("heat").hidden = $("heat-controls").hidden = $("invite").hidden = true;
  $("layers").hidden = false;
  $("stage").classList.add("filled");
  $("clear").hidden = $("pen").hidden = id !== "pad";
  $("shoot").hidden = id !== "camera";
  $("choose").classList.toggle("primary", id !== "camera");
}

function useFile(file) {
  if (!file) return;
  showLayer("photo");
  use(file, file.name || "image.png");
  $("photo").src = now.url;
  $("photo").alt = `Your image: ${now.name}`;
}

// ---- the answer ----

function show(id) {
  for (const part of ["waiting", "problem", "result"]) $(part).hidden = part !== id;
}

function showProblem({ title, detail, reason, request_id: id }) {
  document.body.classList.remove("busy");
  show("problem");
  $("problem-title").textContent = reason === "unauthorized" ? "This service asks for a key" : title;
  $("problem-detail").textContent = detail.charAt(0).toUpperCase() + detail.slice(1) + (/[.?!]$/.test(detail) ? "" : ".");
  $("problem-id").textContent = id ? `Request ${id}` : "";
  $("key-form").hidden = reason !== "unauthorized";
  $("again").hidden = reason === "unauthorized" || !now.image;
  $("heat").hidden = $("heat-controls").hidden = true;
  $("spoken").textContent = `${$("problem-title").textContent}. ${$("problem-detail").textContent}`;
}

function showAnswer({ predictions, accepted, explanation }) {
  show("result");
  const [best] = predictions;
  const threshold = now.model?.accept?.threshold;
  $("result").classList.toggle("unsure", !accepted);
  $("verdict").textContent = accepted ? `${percent(best.probability)} sure` : "Not sure enough";
  $("top").textContent = accepted ? best.label : "None of these";
  $("verdict-text").textContent = accepted
    ? acceptedText(now.model?.accept)
    : `The best guess is “${best.label}” with ${percent(best.probability)}. This model stands by an answer from ${percent(threshold)} on; below, it would rather say that it does not know.`;
  $("bars").replaceChildren(...predictions.map((one) => barOf(one, explanation.class_index, threshold)));
  showHeat(explanation);
  $("spoken").textContent = `${$("top").textContent}. ${accepted ? $("verdict").textContent : $("verdict-text").textContent}`;
}

function acceptedText(accept) {
  if (!accept) return "This model has no threshold: it stands by every answer.";
  return `The model stands by this: it is above its threshold of ${percent(accept.threshold)}, from which ${exact(accept.precision)} of its answers were right.`;
}

function barOf({ label, class_index: index, probability }, explained, threshold) {
  const fill = element("span", { className: "fill" });
  fill.style.width = `${Math.max(probability * 100, 0.5)}%`;
  const track = element("span", { className: "track" }, fill);
  if (threshold !== undefined) {
    const mark = element("span", { className: "mark", title: `accepted from ${percent(threshold)}` });
    mark.style.left = `${threshold * 100}%`;
    track.append(mark);
  }
  const button = element("button", { type: "button", title: `Show where the evidence for “${label}” lies` });
  button.append(element("span", { className: "name" }, label), element("span", { className: "share" }, percent(probability)), track);
  button.setAttribute("aria-pressed", String(index === explained));
  button.addEventListener("click", async () => {
    now.classIndex = index;
    await classify();
    [...$("bars").querySelectorAll("button")].find((one) => one.getAttribute("aria-pressed") === "true")?.focus();
  });
  return element("li", {}, button);
}

function showHeat({ label, method, passes, overlay, evidence }) {
  $("heat").src = `data:image/png;base64,${overlay}`;
  $("heat").hidden = $("heat-controls").hidden = false;
  $("heat").alt = `Heat map of the evidence for ${label}`;
  const some = Math.max(...evidence.flat()) > 0;
  const how = method === "occlusion" ? `covering it there lowers the probability (the model ran ${passes} times to find out)` : "from the same pass that gave the answer";
  $("heat-text").textContent = some ? `The hotter, the more speaks for “${label}”: ${how}.` : `Nothing in this image speaks for “${label}”.`;
}

function showTimes(header, total) {
  const stages = [...header.matchAll(/(\w+);dur=([\d.]+)/g)].map(([, name, value]) => [name, Number(value)]);
  const inside = stages.reduce((sum, [, value]) => sum + value, 0);
  stages.push(["rest", Math.max(0, total - inside)]);
  const words = { queue: "waiting", rest: "network and the rest" };
  $("time-bar").replaceChildren(...stages.map(([name, value]) => {
    const part = element("span", { className: name });
    part.style.flex = `${value} 0 0`;
    return part;
  }));
  $("times").replaceChildren(
    ...stages.map(([name, value]) => element("li", {}, element("i", { className: name }), `${words[name] ?? name} ${milliseconds(value)}`)),
    element("li", {}, `in all ${milliseconds(total)}`),
  );
}

// ---- the request as code ----

function showCode() {
  const address = new URL(`predict?${query()}`, document.baseURI);
  const python = (text) => JSON.stringify(text);
  $("request").hidden = false;
  $("curl").textContent = [
    `curl --data-binary ${shellQuoted(`@${now.name}`)} \\`,
    ...(now.key ? ['  -H "X-API-Key: $CONVSERVE_API_KEY" \\'] : []),
    `  ${shellQuoted(address.href)}`,
  ].join("\n");
  $("python").textContent = [
    ...(now.key ? ["import os", ""] : []),
    "import httpx",
    "",
    `with open(${python(now.name)}, "rb") as file:`,
    "    response = httpx.post(",
    `        ${python(address.href)},`,
    "        content=file.read(),",
    ...(now.key ? ['        headers={"X-API-Key": os.environ["CONVSERVE_API_KEY"]},'] : []),
    "    )",
    "answer = response.raise_for_status().json()",
    'print(answer["predictions"][0], answer["accepted"])',
  ].join("\n");
}

async function copy(button) {
  const text = $(button.dataset.copies).textContent;
  try {
    await navigator.clipboard.writeText(text); // there only over https and on localhost
  } catch {
    const field = element("textarea", { value: text });
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    button.focus();
  }
  button.textContent = $("spoken").textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

// ---- camera ----

async function startCamera() {
  try {
    now.stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch {
    $("capture").click(); // no camera, or no leave to use it: phones have an application for it
    return;
  }
  $("camera").srcObject = now.stream;
  await $("camera").play(); // before it, a photo would have no pixels
  showLayer("camera");
  $("shoot").focus();
}

function stopCamera() {
  now.stream?.getTracks().forEach((track) => track.stop());
  now.stream = null;
}

function shoot() {
  const video = $("camera");
  const canvas = element("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => useFile(new File([blob], "photo.jpg", { type: "image/jpeg" })), "image/jpeg", 0.92);
}

// ---- drawing ----

const pen = { paper: "#fff", ink: "#000", x: 0, y: 0, down: false, timer: 0 };

function startDrawing() {
  showLayer("pad");
  const context = $("pad").getContext("2d");
  context.fillStyle = pen.paper;
  context.fillRect(0, 0, $("pad").width, $("pad").height);
  now.request += 1; // whatever is asked of the old image is no longer wanted
  clearTimeout(pen.timer);
  pen.down = false;
  movePen($("pad").width / 2, $("pad").height / 2, false);
  show("waiting");
  $("request").hidden = true;
  $("pad").focus();
}

function movePen(x, y, draws) {
  const pad = $("pad");
  const context = pad.getContext("2d");
  [x, y] = [Math.min(Math.max(x, 0), pad.width), Math.min(Math.max(y, 0), pad.height)];
  if (draws) {
    Object.assign(context, { strokeStyle: pen.ink, lineWidth: pad.width / 14, lineCap: "round", lineJoin: "round" });
    context.beginPath();
    context.moveTo(pen.x, pen.y);
    context.lineTo(x, y);
    context.stroke();
    sendDrawingSoon();
  }
  Object.assign(pen, { x, y });
  Object.assign($("pen").style, { left: `${(x / pad.width) * 100}%`, top: `${(y / pad.height) * 100}%` });
  $("pen").classList.toggle("down", pen.down);
}

function sendDrawingSoon() {
  clearTimeout(pen.timer);
  pen.timer = setTimeout(() => $("pad").toBlob((blob) => use(blob, "drawing.png")), DRAWING_PAUSE);
}

function movePenTo(event, draws) {
  const box = $("pad").getBoundingClientRect();
  movePen(((event.clientX - box.left) / box.width) * $("pad").width, ((event.clientY - box.top) / box.height) * $("pad").height, draws);
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function drawByKey(event) {
  if (event.key === " ") {
    pen.down = !pen.down;
    movePen(pen.x, pen.y, pen.down);
  } else if (event.key in ARROWS) {
    const step = $("pad").width / (event.shiftKey ? 8 : 24);
    const [right, down] = ARROWS[event.key];
    movePen(pen.x + right * step, pen.y + down * step, pen.down);
  } else {
    return;
  }
  event.preventDefault();
}

// ---- what a person does ----

$("choose").addEventListener("click", () => $("file").click());
for (const id of ["file", "capture"]) {
  $(id).addEventListener("change", () => {
    useFile($(id).files[0]);
    $(id).value = ""; // so that the same file can be chosen again
  });
}
$("take").addEventListener("click", startCamera);
$("shoot").addEventListener("click", shoot);
$("draw").addEventListener("click", startDrawing);
$("clear").addEventListener("click", startDrawing);
$("again").addEventListener("click", classify);
$("labels-filter").addEventListener("input", showLabels);
$("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  now.key = $("key").value.trim();
  show("waiting");
  await loadModel();
  if (now.image && now.model) classify();
});
$("opacity").addEventListener("input", () => {
  $("heat").style.opacity = $("opacity").value / 100;
  $("opacity-value").textContent = `${$("opacity").value} %`;
});
$("photo").addEventListener("load", () => $("photo").classList.toggle("tiny", $("photo").naturalWidth <= SMALL_SIDE * 2));
$("photo").addEventListener("error", () => {
  $("photo").hidden = true;
  $("unseen").hidden = false;
});
for (const button of document.querySelectorAll("[data-copies]")) button.addEventListener("click", () => copy(button));

document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) useFile(file);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  useFile(event.dataTransfer.files[0]);
});

$("pad").addEventListener("pointerdown", (event) => {
  $("pad").setPointerCapture(event.pointerId);
  pen.down = false;
  movePenTo(event, false);
  movePen(pen.x, pen.y, true);
});
$("pad").addEventListener("pointermove", (event) => {
  if (event.buttons) for (const one of event.getCoalescedEvents?.() ?? [event]) movePenTo(one, true);
});
$("pad").addEventListener("keydown", drawByKey);

$("heat").style.opacity = $("opacity").value / 100;
loadModel();
