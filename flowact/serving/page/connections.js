// Two ways to the server that look the same to the page: WebRTC, and a WebSocket. Both carry the same JSON events.
import { Mp4Player, PicturePlayer } from "./players.js";

const KIND = { fmp4: 1, jpeg: 2, pcm16: 3 };
const HEADER = 13;

export function base64(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(text);
}

/** `handlers`: onEvent(event), onOpen(), onClose(reason), onBlocked(). */
export class SocketConnection {
  constructor({ session, token, format, elements, chunkSeconds, handlers }) {
    this.format = format;
    this.handlers = handlers;
    this.name = format === "jpeg" ? "WebSocket, pictures" : "WebSocket";
    const url = new URL("v1/realtime", location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    url.hash = "";
    url.search = new URLSearchParams({ session: session.id, ticket: session.ticket });
    elements.video.hidden = format === "jpeg";
    elements.canvas.hidden = format !== "jpeg";
    this.player = format === "jpeg" ? new PicturePlayer(elements.canvas, chunkSeconds) : new Mp4Player(elements.video, chunkSeconds);
    this.player.onBlocked = handlers.onBlocked;
    this.video = elements.video;
    this.seq = 0;
    this.socket = new WebSocket(url, token ? ["flowact.realtime", `flowact.token.${token}`] : ["flowact.realtime"]);
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = () => handlers.onOpen();
    this.socket.onmessage = (message) => (typeof message.data === "string" ? this.onText(message.data) : this.onFrame(message.data));
    this.socket.onclose = (close) => {
      this.player.close();
      if (!this.ended) handlers.onClose(this.reason || (close.code === 1008 ? "the server refused the connection" : "the connection was lost"), close.code);
    };
  }

  onText(text) {
    const event = JSON.parse(text);
    if (event.type === "session.created") this.send({ type: "session.update", session: { video: { output: { format: this.format } } } });
    if (event.type === "avatar.video.init") this.player.open(event.mime);
    if (event.type === "session.closed") this.reason = event.message;
    this.handlers.onEvent(event);
  }

  onFrame(data) {
    const view = new DataView(data);
    const kind = view.getUint8(0);
    const seconds = Number(view.getBigUint64(5)) / 1e6;
    const payload = new Uint8Array(data, HEADER);
    if (kind === KIND.fmp4) this.player.push(payload);
    else if (kind === KIND.jpeg) this.player.picture(seconds, payload);
    else if (kind === KIND.pcm16) this.player.sound(seconds, payload);
  }

  send(event) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(event));
  }

  sendSound(samples) {
    this.sendFrame(KIND.pcm16, new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength));
  }

  sendFrame(kind, bytes) {
    if (this.socket.readyState !== WebSocket.OPEN) return;
    const frame = new Uint8Array(HEADER + bytes.length);
    const view = new DataView(frame.buffer);
    view.setUint8(0, kind);
    view.setUint32(1, this.seq++);
    frame.set(bytes, HEADER);
    this.socket.send(frame);
  }

  async setMicrophone() {
    return false; // pieces go through sendSound
  }

  unblock() {
    if (this.player.context) this.player.context.resume();
    this.video.muted = false;
    this.video.play().catch(() => {});
  }

  numFrames() {
    if (this.format === "jpeg") return this.player.numShown;
    return this.video.getVideoPlaybackQuality().totalVideoFrames;
  }

  async delay() {
    return this.player.delay;
  }

  close() {
    this.ended = true;
    this.socket.close();
    this.player.close();
  }
}

export class RtcConnection {
  static async open(options) {
    const connection = new RtcConnection();
    await connection.connect(options);
    return connection;
  }

  async connect({ session, headers, iceServers, elements, handlers }) {
    this.name = "WebRTC";
    this.handlers = handlers;
    this.video = elements.video;
    elements.video.hidden = false;
    elements.canvas.hidden = true;
    const peer = (this.peer = new RTCPeerConnection({ iceServers: iceServers.map((urls) => ({ urls })) }));
    const stream = new MediaStream();
    this.sender = peer.addTransceiver("audio", { direction: "sendrecv" }).sender;
    peer.addTransceiver("video", { direction: "recvonly" });
    peer.ontrack = ({ track, receiver }) => {
      this.receivers = { ...this.receivers, [track.kind]: receiver };
      stream.addTrack(track);
      elements.video.srcObject = stream;
      elements.video.play().catch((error) => error.name === "NotAllowedError" && handlers.onBlocked());
    };
    const channel = (this.channel = peer.createDataChannel("events"));
    const opened = new Promise((resolve, reject) => {
      channel.onopen = resolve;
      peer.onconnectionstatechange = () => {
        if (peer.connectionState === "failed") reject(new Error("no way through the network"));
        if (["failed", "closed"].includes(peer.connectionState)) this.lost();
      };
      setTimeout(() => reject(new Error("no answer over the network")), 8000);
    });
    channel.onmessage = (message) => {
      const event = JSON.parse(message.data);
      if (event.type === "session.closed") this.reason = event.message;
      handlers.onEvent(event);
    };
    channel.onclose = () => this.lost();
    try {
      await peer.setLocalDescription(await peer.createOffer());
      await gathered(peer);
      const response = await fetch("v1/webrtc/offer", {
        method: "POST",
        headers: { ...headers, "content-type": "application/json" },
        body: JSON.stringify({ type: "offer", sdp: peer.localDescription.sdp, session: session.id, ticket: session.ticket }),
      });
      const answer = await response.json();
      if (!response.ok) throw new Error(answer.error ? answer.error.message : response.statusText);
      await peer.setRemoteDescription({ type: "answer", sdp: answer.sdp });
      await opened;
    } catch (error) {
      this.close();
      throw error;
    }
    this.up = true;
    handlers.onOpen();
  }

  lost() {
    if (this.ended || !this.up) return;
    this.close();
    this.handlers.onClose(this.reason || "the connection was lost");
  }

  send(event) {
    if (this.channel.readyState === "open") this.channel.send(JSON.stringify(event));
  }

  sendSound(samples) {
    this.send({ type: "input_audio_buffer.append", audio: base64(new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength)) });
  }

  async setMicrophone(track) {
    await this.sender.replaceTrack(track);
    return true;
  }

  unblock() {
    this.video.muted = false;
    this.video.play().catch(() => {});
  }

  numFrames() {
    return this.video.getVideoPlaybackQuality().totalVideoFrames;
  }

  async delay() {
    const receiver = this.receivers && this.receivers.video;
    if (!receiver) return 0;
    for (const report of (await receiver.getStats()).values()) {
      if (report.type === "inbound-rtp" && report.jitterBufferEmittedCount) return report.jitterBufferDelay / report.jitterBufferEmittedCount;
    }
    return 0;
  }

  close() {
    this.ended = true;
    this.peer.close();
    this.video.srcObject = null;
  }
}

/** All addresses are known, or a second has passed. */
function gathered(peer) {
  return new Promise((resolve) => {
    if (peer.iceGatheringState === "complete") resolve();
    peer.addEventListener("icegatheringstatechange", () => peer.iceGatheringState === "complete" && resolve());
    setTimeout(resolve, 1000);
  });
}
