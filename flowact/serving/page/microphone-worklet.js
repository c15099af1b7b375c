// Sound of the microphone as 16-bit samples at 16 kHz, a tenth of a second at a time.
const RATE = 16000;
const PIECE = RATE / 10;

class Downsampler extends AudioWorkletProcessor {
  constructor() {
    super();
    this.piece = new Int16Array(PIECE);
    this.filled = 0;
    this.sum = 0;
    this.count = 0;
    this.until = sampleRate / RATE; // input samples, fractions among them, that one output sample averages
    this.at = 0;
  }

  process(inputs) {
    const channels = inputs[0];
    if (!channels || channels.length === 0) return true;
    for (let i = 0; i < channels[0].length; i++) {
      let value = 0;
      for (const channel of channels) value += channel[i];
      this.sum += value / channels.length;
      this.count += 1;
      this.at += 1;
      while (this.at >= this.until && this.count > 0) {
        this.at -= this.until;
        this.add(this.sum / this.count);
        this.sum = 0;
        this.count = 0;
      }
    }
    return true;
  }

  add(value) {
    this.piece[this.filled++] = Math.max(-1, Math.min(1, value)) * 32767;
    if (this.filled === PIECE) {
      this.port.postMessage(this.piece.buffer, [this.piece.buffer]);
      this.piece = new Int16Array(PIECE);
      this.filled = 0;
    }
  }
}

registerProcessor("flowact-downsampler", Downsampler);
