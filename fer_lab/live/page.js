// Shows what the net tells of a picture, or of the camera's newest frame. Asks its own server alone and keeps nothing.

const FRAME_SIDE = 640; // pixels of a camera's frame that are sent: the finder looks at no more
const PICTURE_SIDE = 1600; // of a picture that is too large a file to be sent as it is
const [TRAIL, NUMBERS] = [12, 30]; // newest points of valence and arousal; frames that rate and latency are taken over
const FINAL = [403, 413, 421]; // answers that the next frame would get too
const REFUSALS = {
  NotAllowedError: "The browser was told not to give this page the camera: allow it in the address bar.",
  NotFoundError: "There is no camera here.",
  NotReadableError: "The camera is in use by another program.",
};
const get = (id) => document.getElementById(id);
const percent = (share) => `${Math.round(share * 100)}%`;
const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
const area = (face) => face.box[2] * face.box[3];
const sentence = (words) => words[0].toUpperCase() + words.slice(1);
const pause = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));

let facts = { classes: [], colours: {}, bytes: Infinity };
let turn = 0; // raised when another picture or the camera takes the stage: what is still on its way is then too late
let shown = null; // the picture on the stage: {data, reply}; of the camera, the newest frame
let wanted = null; // the face that the user pointed at
let camera = null; // {stream, session, mirrored}
let held = null; // the face that the keyboard is at, even while no face is found
let [trail, spoken] = [[], 0];

async function ask(path, data) {
  let response;
  try {
    response = await fetch(path, data ? { method: "POST", body: data } : {});
  } catch {
    throw Object.assign(new Error("The server does not answer: is it still running?"), { again: 1 });
  }
  if (response.ok) return response;
  const words = await response.json().then((told) => told.error, () => response.statusText);
  const again = Number(response.headers.get("Retry-After")) || (FINAL.includes(response.status) ? 0 : 1);
  throw Object.assign(new Error(sentence(words)), { again, status: response.status });
}

async function begin() {
  facts = await (await ask("/facts")).json();
  const kind = facts.classes.length ? `${facts.classes.length} expressions` : "valence and arousal";
  get("net").textContent = `${facts.net} · ${kind} · ${facts.size}\u00a0×\u00a0${facts.size}\u00a0${facts.channels === 1 ? "grey" : "colour"}`;
  get("maps").hidden = !facts.explains;
  get("notes").replaceChildren(...facts.notes.map((words) => element("li", words)));
  get("bars").replaceChildren(...facts.classes.map(bar));
}

function element(tag, textContent = "", className = "") {
  return Object.assign(document.createElement(tag), { textContent, className });
}

function bar(name) {
  const row = element("li");
  row.style.setProperty("--shown", facts.colours[name] ?? "#40beb2");
  row.append(element("span", name), element("i"), element("b"));
  return row;
}

function problem(words = "") {
  get("problem").textContent = words;
  get("problem").hidden = !words;
}

// ---- the stage
function stage(width, height, filming) {
  const view = get("view");
  view.style.aspectRatio = `${width} / ${height}`;
  view.style.width = `min(100%, calc(72vh * ${width / height}))`;
  view.className = `view filled${filming ? " filming" : ""}${filming && camera.mirrored ? " mirrored" : ""}`;
  get("empty").hidden = true;
  [get("picture").hidden, get("camera").hidden] = [filming, !filming];
}

function clear() {
  turn += 1;
  shown = wanted = null;
  trail = [];
  get("boxes").replaceChildren();
  hideMap();
  get("pace").textContent = "";
  problem();
  return turn;
}

async function lookAt(file) {
  stopFilming();
  const mine = clear();
  get("pace").textContent = "looking …";
  get("told").classList.add("stale");
  let bitmap;
  try {
    if (!facts.net) await begin();
    bitmap = await opened(file);
    if (turn !== mine) return;
    draw(get("picture"), bitmap);
    stage(bitmap.width, bitmap.height, false);
    const found = await predicted(file, bitmap);
    if (turn !== mine) return;
    shown = found;
    tell(shown.reply);
    get("pace").textContent = `${Math.round(shown.reply.milliseconds)} ms`;
    await showMap();
  } catch (error) {
    if (turn !== mine) return;
    if (!bitmap) vacate();
    failed(error);
  }
}

async function predicted(file, bitmap) {
  const reply = async (data) => ({ data, reply: await (await ask("/predict", data)).json() });
  if (file.size <= facts.bytes) {
    try {
      return await reply(file);
    } catch (error) {
      if (error.status !== 415) throw error;
      problem(`${error.message}. What the browser makes of it was sent instead.`);
    }
  }
  return reply(await encoded(bitmap, PICTURE_SIDE, 0.92));
}

function failed(error) {
  problem(error.message);
  get("pace").textContent = "";
  if (!shown) untold("");
}

async function opened(file) {
  try {
    return await createImageBitmap(file);
  } catch { // what the browser cannot show, such as TIFF, the server may
    return createImageBitmap(await (await ask("/picture", file)).blob());
  }
}

function draw(canvas, source, side = PICTURE_SIDE) {
  const [width, height] = [source.videoWidth || source.width, source.videoHeight || source.height];
  const scale = Math.min(1, side / Math.max(width, height));
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  canvas.getContext("2d").drawImage(source, 0, 0, canvas.width, canvas.height);
}

const paper = document.createElement("canvas");
paper.getContext("2d", { willReadFrequently: true }); // where toBlob reads it: 2.6 ms a frame, not 4.4
function encoded(source, side, quality) {
  draw(paper, source, side);
  return new Promise((done) => paper.toBlob(done, "image/jpeg", quality));
}

// ---- what is told
function tell(reply) {
  const largest = [...reply.faces].sort((one, other) => area(other) - area(one))[0];
  const face = reply.faces.find((one) => one.face_id === wanted) ?? largest;
  boxes(reply, face);
  if (!face) return untold("No face found");
  get("hint").hidden = true;
  get("told").classList.remove("stale");
  get("label").textContent = face.label ?? "";
  get("share").textContent = face.label ? percent(face.confidence) : "";
  facts.classes.forEach((name, place) => level(place, face.probabilities[name], name === face.label));
  affect(face);
  speak(reply.faces.length, face);
}

function level(place, share, first) {
  const row = get("bars").children[place];
  row.className = first ? "first" : "";
  row.children[2].textContent = share === null ? "" : percent(share);
  row.style.setProperty("--part", share ?? 0);
}

function untold(words) {
  hideMap();
  get("spoken").textContent = words;
  get("told").classList.toggle("stale", Boolean(camera && shown)); // what was told last stays, paler: nothing jumps
  if (camera && get("label").textContent) return;
  get("label").textContent = get("share").textContent = "";
  get("hint").textContent = words;
  get("hint").hidden = !words;
  facts.classes.forEach((_, place) => level(place, null, false));
  get("affect").hidden = true;
}

function title(face) {
  return face.label ? `${face.label} ${percent(face.confidence)}` : `${signed(face.valence)} · ${signed(face.arousal)}`;
}

function boxes(reply, chosen) {
  const group = get("boxes");
  if (document.activeElement !== group) held = document.activeElement.dataset.face;
  while (group.children.length > reply.faces.length) group.lastChild.remove();
  while (group.children.length < reply.faces.length) {
    const made = element("button", "", "face");
    made.type = "button";
    made.append(element("span"));
    made.onclick = () => choose(Number(made.dataset.face));
    group.append(made);
  }
  reply.faces.forEach((face, place) => placed(group.children[place], face, reply, face === chosen));
  if (held) (group.querySelector(`[data-face="${held}"]`) ?? group).focus({ preventScroll: true });
}

function placed(box, face, reply, pressed) {
  const [left, top, width, height] = face.box;
  const start = camera?.mirrored ? reply.width - left - width : left;
  const sides = { left: start / reply.width, width: width / reply.width, top: top / reply.height, height: height / reply.height };
  for (const [side, share] of Object.entries(sides)) box.style[side] = `${100 * share}%`;
  box.style.setProperty("--shown", facts.colours[face.label] ?? "#40beb2");
  box.classList.toggle("low", top < 0.1 * reply.height);
  box.dataset.face = face.face_id;
  box.ariaPressed = String(pressed);
  box.firstChild.textContent = title(face);
  box.classList.toggle("late", sides.left + box.firstChild.offsetWidth / get("view").clientWidth > 1);
  box.ariaLabel = `Face ${face.face_id + 1}: ${title(face)}`;
}

function choose(face) {
  wanted = face;
  trail = [];
  if (shown) tell(shown.reply);
  if (!camera) showMap();
}

function affect(face) {
  get("affect").hidden = !facts.affect;
  if (!facts.affect) return;
  get("valence").textContent = signed(face.valence);
  get("arousal").textContent = signed(face.arousal);
  const [x, y] = [84 * face.valence, -84 * face.arousal];
  for (const [name, value] of [["cx", x], ["cy", y]]) get("dot").setAttribute(name, value);
  trail = camera ? [...trail, [x, y]].slice(-TRAIL) : [];
  get("trail").replaceChildren(...trail.slice(0, -1).map(mark));
}

function mark([x, y], place) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "circle");
  for (const [name, value] of Object.entries({ cx: x, cy: y, r: 3, opacity: (place + 1) / (2 * TRAIL) })) made.setAttribute(name, value);
  return made;
}

function speak(count, face) {
  const words = `${count > 1 ? `${count} faces; ` : ""}${camera ? face.label ?? "" : title(face)}`;
  if (words === get("spoken").textContent || (camera && performance.now() - spoken < 3000)) return;
  spoken = performance.now(); // of the camera, only what changes, and no faster than it can be read out
  get("spoken").textContent = words;
}

// ---- where the net looks
async function showMap() {
  const [mine, face] = [turn, wanted];
  if (!camera) hideMap(); // it would be of another face; one of the frame before may stay until the next
  if (!get("mapped").checked || !shown?.reply.faces.length) return hideMap();
  const known = shown.reply.faces.some((face) => face.face_id === wanted);
  const words = [...(camera ? [`session=${camera.session}`] : []), ...(known ? [`face=${wanted}`] : [])];
  const response = await ask(`/explain?${words.join("&")}`, shown.data).catch((error) => (camera ? null : problem(error.message)));
  if (turn !== mine || wanted !== face) return;
  if (!response) return hideMap();
  const bitmap = await createImageBitmap(await response.blob());
  if (turn !== mine || wanted !== face || !get("mapped").checked) return;
  draw(get("map"), bitmap);
  get("map").hidden = get("method").hidden = false;
  get("method").textContent = `${sentence(response.headers.get("X-Method"))}: what is bright speaks for ${get("label").textContent}`;
}

function hideMap() {
  get("map").hidden = get("method").hidden = true;
}

// ---- the camera
async function film(device) {
  if (!navigator.mediaDevices) return problem("Browsers give the camera only to pages of localhost or https.");
  stopFilming();
  const mine = clear();
  vacate();
  get("pace").textContent = "waiting for the camera …";
  const size = { width: { ideal: 640 }, height: { ideal: 480 } };
  const which = device ? { deviceId: { exact: device } } : { facingMode: "user" };
  try {
    if (!facts.net) await begin();
    const stream = await navigator.mediaDevices.getUserMedia({ video: { ...size, ...which }, audio: false });
    const [track] = stream.getVideoTracks();
    if (turn !== mine) return track.stop();
    const { facingMode, deviceId } = track.getSettings();
    camera = { stream, mirrored: facingMode !== "environment", session: crypto.randomUUID(), device: deviceId };
    track.onended = () => {
      stopFilming();
      problem("The camera is gone.");
    };
    await filming(mine);
  } catch (error) {
    if (turn !== mine) return;
    stopFilming();
    failed(new Error(REFUSALS[error.name] ?? error.message));
  }
}

async function filming(mine) {
  const video = get("camera");
  video.srcObject = camera.stream;
  await video.play();
  get("film").textContent = "Stop the camera";
  video.onresize = () => camera && stage(video.videoWidth, video.videoHeight, true); // a phone was turned
  video.onresize();
  const all = await navigator.mediaDevices.enumerateDevices();
  get("other").hidden = all.filter((one) => one.kind === "videoinput").length < 2;
  const times = [];
  for (let newer; turn === mine; await newer) {
    newer = nextFrame(video); // may come while the net looks at this one
    try {
      await frame(video, mine, times);
    } catch (error) {
      if (turn !== mine) return;
      if (!error.again) throw error;
      boxes({ faces: [] });
      failed(error);
      get("told").classList.add("stale");
      await pause(error.again);
    }
  }
}

function nextFrame(video) {
  return new Promise((done) => (video.requestVideoFrameCallback ? video.requestVideoFrameCallback(done) : requestAnimationFrame(done)));
}

async function frame(video, mine, times) {
  const start = performance.now();
  const data = await encoded(video, FRAME_SIDE, 0.85);
  const reply = await (await ask(`/predict?session=${camera.session}`, data)).json();
  if (turn !== mine) return;
  shown = { data, reply };
  tell(reply);
  problem();
  pace(times, start);
  await showMap();
}

function pace(times, start) {
  const now = performance.now();
  times.push([now, now - start]);
  if (times.length > NUMBERS) times.shift();
  const rate = times.length > 1 ? ((times.length - 1) * 1000) / (now - times[0][0]) : 0;
  const middle = times.map(([, taken]) => taken).sort((one, other) => one - other)[times.length >> 1];
  if (rate) get("pace").textContent = `${rate.toFixed(0)} frames/s · ${middle.toFixed(0)} ms`;
}

function stopFilming() {
  if (!camera) return;
  camera.stream.getTracks().forEach((track) => track.stop());
  get("camera").srcObject = null;
  camera = null;
  clear();
  get("film").textContent = "Use the camera";
  get("other").hidden = true;
  vacate();
}

function vacate() {
  get("camera").hidden = get("picture").hidden = true;
  get("view").removeAttribute("style");
  get("view").className = "view";
  get("empty").hidden = false;
  untold("");
}

async function otherCamera() {
  const all = (await navigator.mediaDevices.enumerateDevices()).filter((one) => one.kind === "videoinput");
  const place = all.findIndex((one) => one.deviceId === camera?.device);
  await film(all[(place + 1) % all.length].deviceId);
}

// ---- what the user does
function take(files) {
  const file = [...files].find((one) => one.type.startsWith("image/") || /\.(tiff?|jp2)$/i.test(one.name)) ?? files[0];
  return file ? lookAt(file) : problem("That is no file: save the picture first, or copy and paste it.");
}

get("file").onchange = (event) => {
  take(event.target.files);
  event.target.value = ""; // the same file may be chosen again
};
get("film").onclick = () => (camera ? stopFilming() : film());
get("other").onclick = otherCamera;
get("mapped").onchange = showMap;
document.addEventListener("paste", (event) => event.clipboardData.files.length && take(event.clipboardData.files));
function dragging(event) {
  event.preventDefault();
  document.body.classList.toggle("dragging", event.type === "dragover");
}
document.addEventListener("dragover", dragging);
document.addEventListener("dragleave", (event) => event.relatedTarget || dragging(event));
document.addEventListener("drop", (event) => {
  dragging(event);
  take(event.dataTransfer.files);
});
addEventListener("pagehide", stopFilming);
begin().catch((error) => problem(error.message));
