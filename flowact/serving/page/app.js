// The page: chooses a character, opens a session, shows what comes and says what happens.
import { RtcConnection, SocketConnection, base64 } from "./connections.js";
import { canPlayMp4 } from "./players.js";
import { Microphone, decodeFile, sendPaced } from "./sound.js";

const $ = (id) => document.getElementById(id);
const elements = { video: $("video"), canvas: $("canvas") };
const live = [$("microphone"), $("file"), $("interrupt"), $("stop"), $("picture"), $("prompt"), $("prompt-form").querySelector("button"), ...$("states").children];
const HINTS = {
  person: "It listens while you speak, thinks, and answers when you pause.",
  character: "What you say, or play from a file, comes out of its mouth.",
};

let info = null;
let token = null;
let session = null; // {id, ticket, chunk_seconds}
let connection = null;
let microphone = null;
let playingFile = 0;
let character = null;
let begun = 0;
let firstFrame = null;
let roundTrip = null;
let shown = { at: performance.now(), frames: 0 };

// ---- talking to the server ----

function readToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem("flowact-token", given);
    history.replaceState(null, "", location.pathname + location.search); // out of the address bar and the history
  }
  return given || sessionStorage.getItem("flowact-token");
}

const headers = () => (token ? { authorization: `Bearer ${token}` } : {});

async function api(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  const answer = response.status === 204 ? null : await response.json().catch(() => null);
  if (!response.ok) {
    if (response.status === 401) throw new Error("The token is missing or wrong. Open the address that the server printed.");
    throw Object.assign(new Error((answer && answer.error && answer.error.message) || `The server said ${response.status}.`), { status: response.status });
  }
  return answer;
}

async function loadPicture(path) {
  const response = await fetch(path, { headers: headers() });
  return response.ok ? URL.createObjectURL(await response.blob()) : "";
}

// ---- what is shown ----

function fail(message) {
  $("banner-text").textContent = message;
  $("banner").hidden = false;
}

function note(text) {
  const line = document.createElement("li");
  line.textContent = `${new Date().toLocaleTimeString()}  ${text}`;
  $("log").prepend(line);
  while ($("log").children.length > 100) $("log").lastChild.remove();
}

function status(text, level) {
  $("connection").textContent = text;
  $("connection").dataset.level = level;
}

function wait(text) {
  $("waiting").hidden = !text;
  $("waiting-text").textContent = text || "";
}

function showLevel(level) {
  $("level").firstElementChild.style.transform = `scaleX(${level.toFixed(3)})`;
}

function enable(on) {
  for (const element of live) element.disabled = !on;
  for (const label of [$("file-label"), $("picture-label")]) label.setAttribute("aria-disabled", String(!on));
}

function choose(id) {
  character = id;
  for (const button of $("characters").children) button.setAttribute("aria-checked", String(button.dataset.id === id));
  const picture = $("characters").querySelector("[aria-checked=true] img");
  if (picture) $("poster").src = picture.src;
}

async function showCharacters() {
  for (const who of await api("v1/characters")) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.id = who.id;
    button.setAttribute("role", "radio");
    const image = document.createElement("img");
    image.alt = "";
    image.src = await loadPicture(who.picture.slice(1));
    button.append(image, who.name);
    button.onclick = () => {
      choose(who.id);
      if (connection) connection.send({ type: "avatar.reference.update", character: who.id });
    };
    $("characters").append(button);
  }
  choose($("characters").firstChild.dataset.id);
  $("poster").hidden = false;
}

function showState(state) {
  $("state").textContent = state[0].toUpperCase() + state.slice(1);
  $("state").dataset.state = state;
  $("state").hidden = false;
  $("f-state").textContent = state;
}

function showMetrics(event) {
  const known = event.metrics;
  const seconds = (value) => (value === null || value === undefined ? "–" : `${value.toFixed(2)} s`);
  showState(event.state);
  $("f-queue").textContent = seconds(known.queued_seconds);
  $("f-misses").textContent = `${known.deadline_misses ?? 0} (${known.held_chunks} held)`;
  $("f-speed").textContent = known.frames_per_second ? `${known.frames_per_second.toFixed(1)} frames/s` : "–";
  $("f-chunk").textContent = `${event.chunk}${known.dropped_chunks ? ` (${known.dropped_chunks} dropped)` : ""}`;
}

async function measure() {
  if (!connection) return;
  const now = performance.now();
  const frames = connection.numFrames();
  if (firstFrame === null && frames > 0) {
    firstFrame = (now - begun) / 1000;
    $("f-ttff").textContent = `${firstFrame.toFixed(2)} s`;
    $("poster").hidden = true;
    wait(null);
  }
  if (now - shown.at > 900) {
    const rate = ((frames - shown.frames) * 1000) / (now - shown.at);
    if (shown.frames) $("f-fps").textContent = `${Math.max(0, rate).toFixed(1)} frames/s`;
    shown = { at: now, frames };
    connection.send({ type: "avatar.ping", sent: now });
    const budget = info.model.latency_budget;
    const model = budget ? budget.prompt_to_motion_seconds : 0;
    const delay = (await connection.delay()) + (roundTrip ?? 0) / 2000;
    $("f-latency").textContent = `${(model + delay).toFixed(2)} s`;
    $("f-latency").title = `${model.toFixed(2)} s in the model, ${delay.toFixed(2)} s on the way`;
  }
}
setInterval(measure, 100);

// ---- a session ----

function onEvent(event) {
  if (event.type === "avatar.metrics") return showMetrics(event);
  if (event.type === "avatar.video.delta") return undefined;
  if (event.type === "avatar.pong") {
    roundTrip = performance.now() - event.sent;
    return undefined;
  }
  const short = { ...event };
  for (const key of ["type", "event_id", "client_event_id", "session", "ticket", "delta"]) delete short[key];
  note(`${event.type} ${Object.keys(short).length ? JSON.stringify(short) : ""}`);
  if (event.type === "session.created" || event.type === "session.updated") {
    if (event.session.status === "waiting") wait(`You are number ${event.session.position} in the queue.`);
    else if (firstFrame === null) wait("The character wakes up…");
  } else if (event.type === "avatar.queue.updated") {
    wait(`You are number ${event.position} in the queue of ${event.waiting}.`);
  } else if (event.type === "avatar.stream.notice" && event.name === "prompt.applied") {
    $("now").textContent = `Now: “${event.data.text}”`;
    showState(event.data.state);
  } else if (event.type === "avatar.prompt.updated") {
    $("now").textContent = `“${event.text}” begins on chunk ${event.chunk}.`;
  } else if (event.type === "input_audio_buffer.speech_started") {
    $("hint").textContent = "I hear you…";
  } else if (event.type === "input_audio_buffer.speech_stopped") {
    $("hint").textContent = HINTS[voice()];
  } else if (event.type === "response.done" && event.status === "failed") {
    fail("The character had no answer this time.");
  } else if (event.type === "error") {
    fail(event.error.message);
  }
  return undefined;
}

const voice = () => document.querySelector("input[name=voice]:checked").value;

function sendVoice() {
  $("hint").textContent = HINTS[voice()];
  if (connection) connection.send({ type: "session.update", session: { audio: { input: { voice: voice() } } } });
}

async function connect() {
  const handlers = {
    onEvent,
    onOpen: () => {
      status(connection ? connection.name : "connected", "on");
    },
    onClose: (reason, code) => lost(reason, code),
    onBlocked: () => {
      elements.video.muted = true;
      elements.video.play().catch(() => {});
      $("unmute").hidden = false;
    },
  };
  const options = { session, token, headers: headers(), elements, chunkSeconds: session.chunk_seconds, iceServers: info.ice_servers, handlers };
  const wanted = $("transport").value;
  if (wanted === "webrtc" || (wanted === "auto" && info.transports.includes("webrtc") && window.RTCPeerConnection)) {
    try {
      connection = await RtcConnection.open(options);
    } catch (error) {
      if (wanted === "webrtc") throw error;
      note(`WebRTC does not work here (${error.message}); a WebSocket is used`);
    }
  }
  if (!connection) connection = new SocketConnection({ ...options, format: wanted === "jpeg" || !canPlayMp4() ? "jpeg" : "fmp4" });
  status(connection.name, "on");
}

async function start(known) {
  $("start").hidden = true;
  $("banner").hidden = true;
  begun = performance.now();
  firstFrame = null;
  shown = { at: begun, frames: 0 };
  status("connecting", "wait");
  wait("Connecting…");
  try {
    if (known) {
      session = known;
    } else {
      const made = await api("v1/sessions", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ character }) });
      session = { id: made.session.id, ticket: made.ticket, chunk_seconds: made.session.chunk_seconds };
    }
    sessionStorage.setItem("flowact-session", JSON.stringify(session));
    await connect();
    enable(true);
    $("transport").disabled = true;
    sendVoice();
  } catch (error) {
    fail(error.message);
    finish();
  }
}

function lost(reason, code) {
  const again = session && code !== 1008 && !reason.includes("session") && !reason.includes("stops");
  const known = session;
  hangUp();
  if (again) {
    note(`${reason}; connecting again`);
    status("reconnecting", "wait");
    wait("Connecting again…");
    setTimeout(async () => {
      try {
        await api(`v1/sessions/${known.id}?ticket=${known.ticket}`);
        start(known);
      } catch {
        finish();
        fail(`The session is over: ${reason}.`);
      }
    }, 800);
    return;
  }
  finish();
  fail(`The session is over: ${reason}.`);
}

function hangUp() {
  playingFile += 1;
  if (microphone) closeMicrophone();
  if (connection) connection.close();
  connection = null;
  enable(false);
  $("unmute").hidden = true;
}

function finish() {
  hangUp();
  session = null;
  sessionStorage.removeItem("flowact-session");
  elements.video.removeAttribute("src");
  elements.video.load();
  elements.canvas.hidden = true;
  $("transport").disabled = false;
  $("poster").hidden = false;
  $("state").hidden = true;
  $("start").hidden = false;
  $("start").disabled = false;
  $("now").textContent = "";
  for (const figure of document.querySelectorAll(".figures dd")) figure.textContent = "–";
  wait(null);
  status("not connected", "off");
}

async function end() {
  const known = session;
  finish();
  if (known) await api(`v1/sessions/${known.id}?ticket=${known.ticket}`, { method: "DELETE" }).catch(() => {});
}

// ---- what a person does ----

function closeMicrophone() {
  if (connection && connection.setMicrophone) connection.setMicrophone(null);
  microphone.close();
  microphone = null;
  showLevel(0);
  $("microphone").setAttribute("aria-pressed", "false");
  $("microphone-text").textContent = "Microphone";
}

async function toggleMicrophone() {
  if (microphone) {
    closeMicrophone();
    connection.send({ type: "input_audio_buffer.commit" });
    return;
  }
  try {
    const over = connection instanceof RtcConnection;
    microphone = await Microphone.open({
      trackOnly: over,
      onPiece: (samples) => connection && connection.sendSound(samples),
      onLevel: showLevel,
    });
    if (over) await connection.setMicrophone(microphone.track);
    $("microphone").setAttribute("aria-pressed", "true");
    $("microphone-text").textContent = "Microphone on";
  } catch (error) {
    const denied = error.name === "NotAllowedError" || error.name === "NotFoundError";
    fail(denied ? "The browser gave no microphone. Allow it for this page, or use an audio file." : error.message);
  }
}

async function sendFile(file) {
  const own = ++playingFile;
  try {
    const samples = await decodeFile(file);
    note(`${file.name}: ${(samples.length / 16000).toFixed(1)} s`);
    await sendPaced(samples, (piece) => connection.sendSound(piece), () => own !== playingFile || !connection);
    if (connection && own === playingFile) connection.send({ type: "input_audio_buffer.commit" });
  } catch (error) {
    fail(error.message);
  }
}

async function sendPicture(file) {
  try {
    const bitmap = await createImageBitmap(file).catch(() => {
      throw new Error(`${file.name} is no picture that this browser can read.`);
    });
    const scale = Math.min(1, 768 / Math.max(bitmap.width, bitmap.height));
    const canvas = new OffscreenCanvas(Math.max(1, Math.round(bitmap.width * scale)), Math.max(1, Math.round(bitmap.height * scale)));
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    const bytes = new Uint8Array(await (await canvas.convertToBlob({ type: "image/png" })).arrayBuffer());
    const small = bytes.length < 500_000 ? bytes : new Uint8Array(await (await canvas.convertToBlob({ type: "image/jpeg", quality: 0.9 })).arrayBuffer());
    const body = JSON.stringify({ type: "avatar.reference.update", image: base64(small) });
    const path = `v1/sessions/${session.id}/events?ticket=${session.ticket}`;
    for (const event of await api(path, { method: "POST", body })) onEvent(event);
  } catch (error) {
    fail(error.message);
  }
}

$("start").onclick = () => start(null);
$("stop").onclick = end;
$("microphone").onclick = toggleMicrophone;
$("file").onchange = () => {
  if ($("file").files.length) sendFile($("file").files[0]);
  $("file").value = "";
};
$("picture").onchange = () => {
  if ($("picture").files.length) sendPicture($("picture").files[0]);
  $("picture").value = "";
};
$("interrupt").onclick = () => {
  playingFile += 1;
  connection.send({ type: "response.cancel" });
};
$("unmute").onclick = () => {
  $("unmute").hidden = true;
  connection.unblock();
};
$("banner-close").onclick = () => ($("banner").hidden = true);
$("prompt-form").onsubmit = (submit) => {
  submit.preventDefault();
  const text = $("prompt").value.trim();
  if (!text || !connection) return;
  connection.send({ type: "avatar.prompt.update", text });
  mark(null);
};
for (const radio of document.querySelectorAll("input[name=voice]")) radio.onchange = sendVoice;
function mark(state) {
  for (const other of $("states").children) other.classList.toggle("active", other.dataset.state === state);
}
for (const button of $("states").children) {
  button.onclick = () => {
    connection.send({ type: "avatar.state.update", state: button.dataset.state });
    mark(button.dataset.state);
  };
}

window.addEventListener("pagehide", () => connection && connection.close()); // the session waits a moment, for a page that is only reloaded
window.addEventListener("pageshow", (event) => event.persisted && location.reload());

async function main() {
  token = readToken();
  $("hint").textContent = HINTS[voice()];
  try {
    info = await api("v1/info");
    $("model").textContent = info.model.name;
    document.querySelector(".stage").style.aspectRatio = `${info.video.width} / ${info.video.height}`;
    $("transport").querySelector("[value=webrtc]").disabled = !info.transports.includes("webrtc");
    await showCharacters();
    $("start").disabled = false;
    const known = JSON.parse(sessionStorage.getItem("flowact-session") || "null");
    if (known) {
      const found = await api(`v1/sessions/${known.id}?ticket=${known.ticket}`).catch(() => null);
      if (found) start(known); // the page was reloaded
      else sessionStorage.removeItem("flowact-session");
    }
  } catch (error) {
    fail(error.message);
    status("no server", "bad");
  }
}

main();
