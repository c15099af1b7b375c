// Two ways to show what comes over a WebSocket: a media element that is fed MP4, and pictures with samples where there is none.
const Source = window.ManagedMediaSource || window.MediaSource;

export function canPlayMp4() {
  return Boolean(Source && Source.isTypeSupported('video/mp4; codecs="avc1.42C01E, mp4a.40.2"'));
}

/** Feeds fragments to a <video> and stays near the live edge. */
export class Mp4Player {
  constructor(video, chunkSeconds) {
    this.video = video;
    this.lead = Math.max(0.45, chunkSeconds); // kept in front of what is shown
    this.queue = [];
    this.started = false;
  }

  open(mime) {
    this.close();
    this.source = new Source();
    this.url = URL.createObjectURL(this.source);
    this.video.disableRemotePlayback = true;
    this.video.src = this.url;
    this.source.addEventListener("sourceopen", () => {
      if (this.buffer || !this.source) return;
      this.buffer = this.source.addSourceBuffer(mime);
      this.buffer.mode = "segments";
      this.buffer.addEventListener("updateend", () => this.pump());
      this.pump();
    });
    this.timer = setInterval(() => this.follow(), 250);
  }

  push(bytes) {
    this.queue.push(bytes);
    this.pump();
  }

  pump() {
    if (!this.buffer || this.buffer.updating || !this.source || this.source.readyState !== "open") return;
    const ranges = this.buffer.buffered;
    if (ranges.length && this.video.currentTime - ranges.start(0) > 30) {
      this.buffer.remove(ranges.start(0), this.video.currentTime - 10);
      return;
    }
    const next = this.queue.shift();
    if (next) {
      try {
        this.buffer.appendBuffer(next);
      } catch (error) {
        if (error.name !== "QuotaExceededError") throw error;
        this.queue.unshift(next);
        this.buffer.remove(0, Math.max(0.1, this.video.currentTime - 3));
      }
    }
    this.follow();
  }

  follow() {
    const { video, buffer } = this;
    if (!buffer || !buffer.buffered.length) return;
    const ranges = buffer.buffered;
    const end = ranges.end(ranges.length - 1);
    const begin = ranges.start(ranges.length - 1);
    if (!this.started) {
      if (end - begin < this.lead) return;
      this.started = true;
      video.currentTime = begin;
      video.play().catch(() => this.onBlocked && this.onBlocked());
      return;
    }
    const ahead = end - video.currentTime;
    if (video.currentTime < begin - 0.05 && end - begin >= this.lead) video.currentTime = begin; // a gap: chunks were dropped
    else if (ahead > 5 * this.lead + 1) video.currentTime = end - this.lead;
    video.playbackRate = ahead > 2.5 * this.lead ? 1.07 : 1;
  }

  get delay() {
    const ranges = this.buffer && this.buffer.buffered;
    return ranges && ranges.length ? Math.max(0, ranges.end(ranges.length - 1) - this.video.currentTime) : 0;
  }

  close() {
    clearInterval(this.timer);
    if (this.url) URL.revokeObjectURL(this.url);
    this.queue = [];
    this.buffer = this.source = this.url = null;
    this.started = false;
  }
}

/** Draws pictures on a <canvas> to the clock of the sound. */
export class PicturePlayer {
  constructor(canvas, chunkSeconds) {
    this.canvas = canvas;
    this.lead = chunkSeconds;
    this.pictures = [];
    this.numShown = 0;
  }

  open() {
    this.close();
    this.context = new AudioContext();
    this.context.resume();
    if (this.context.state !== "running" && this.onBlocked) setTimeout(() => this.context && this.context.state !== "running" && this.onBlocked(), 500);
    const draw = () => {
      if (!this.context) return;
      this.frame = requestAnimationFrame(draw);
      const now = this.context.currentTime - (this.anchor ?? 0);
      let due = null;
      while (this.pictures.length && this.pictures[0].seconds <= now) due = this.pictures.shift();
      if (due) {
        const { canvas } = this;
        if (canvas.width !== due.bitmap.width) [canvas.width, canvas.height] = [due.bitmap.width, due.bitmap.height];
        canvas.getContext("2d").drawImage(due.bitmap, 0, 0);
        this.numShown += 1;
      }
    };
    draw();
  }

  sound(seconds, bytes) {
    if (!this.context) return;
    const now = this.context.currentTime;
    if (this.anchor === undefined || seconds + this.anchor < now || seconds + this.anchor > now + 4 * this.lead + 1) this.anchor = now + this.lead - seconds;
    const values = new Int16Array(bytes.slice().buffer);
    const buffer = this.context.createBuffer(1, values.length, 16000);
    buffer.copyToChannel(Float32Array.from(values, (value) => value / 32768), 0);
    const node = this.context.createBufferSource();
    node.buffer = buffer;
    node.connect(this.context.destination);
    node.start(seconds + this.anchor);
    this.end = seconds + values.length / 16000;
  }

  async picture(seconds, bytes) {
    const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/jpeg" }));
    this.pictures.push({ seconds, bitmap });
    this.pictures.sort((a, b) => a.seconds - b.seconds);
    if (this.pictures.length > 500) this.pictures.shift();
  }

  get delay() {
    return this.context && this.end ? Math.max(0, this.end + this.anchor - this.context.currentTime) : 0;
  }

  close() {
    cancelAnimationFrame(this.frame);
    if (this.context) this.context.close();
    this.context = null;
    this.anchor = undefined;
    this.pictures = [];
  }
}
