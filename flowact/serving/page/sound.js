// Where a person's sound comes from: the microphone, or a file that is sent as it plays.
const RATE = 16000;

/** The microphone. `onPiece` gets Int16Array pieces at 16 kHz unless `trackOnly`; `onLevel` gets loudness from 0 to 1. */
export class Microphone {
  static async open({ onPiece, onLevel, trackOnly }) {
    if (!navigator.mediaDevices || !navigator.mediaDevices.getUserMedia) {
      throw new Error("The browser gives no microphone to this address. Open the page by localhost or over https.");
    }
    const stream = await navigator.mediaDevices.getUserMedia({
      audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 },
    });
    const microphone = new Microphone();
    microphone.stream = stream;
    microphone.context = new AudioContext();
    await microphone.context.resume();
    const source = microphone.context.createMediaStreamSource(stream);
    const analyser = microphone.context.createAnalyser();
    analyser.fftSize = 512;
    source.connect(analyser);
    const wave = new Float32Array(analyser.fftSize);
    microphone.timer = setInterval(() => {
      analyser.getFloatTimeDomainData(wave);
      const power = wave.reduce((sum, value) => sum + value * value, 0) / wave.length;
      onLevel(Math.max(0, Math.min(1, 1 + Math.log10(power + 1e-9) / 5)));
    }, 80);
    if (!trackOnly) {
      await microphone.context.audioWorklet.addModule("microphone-worklet.js");
      const node = new AudioWorkletNode(microphone.context, "flowact-downsampler", { numberOfOutputs: 0 });
      node.port.onmessage = (message) => onPiece(new Int16Array(message.data));
      source.connect(node);
    }
    return microphone;
  }

  get track() {
    return this.stream.getAudioTracks()[0];
  }

  close() {
    clearInterval(this.timer);
    this.stream.getTracks().forEach((track) => track.stop());
    this.context.close();
  }
}

/** Samples of a sound or film file, mono at 16 kHz. */
export async function decodeFile(file) {
  const bytes = await file.arrayBuffer();
  const decoder = new OfflineAudioContext(1, 1, RATE);
  let sound;
  try {
    sound = await decoder.decodeAudioData(bytes);
  } catch {
    throw new Error(`${file.name}: this browser cannot decode it; try WAV, MP3 or M4A.`);
  }
  const samples = new Int16Array(sound.length);
  const channels = Array.from({ length: sound.numberOfChannels }, (_, i) => sound.getChannelData(i));
  for (let i = 0; i < sound.length; i++) {
    let value = 0;
    for (const channel of channels) value += channel[i];
    samples[i] = Math.max(-1, Math.min(1, value / channels.length)) * 32767;
  }
  return samples;
}

/** Sends samples as fast as they play, a second ahead. Resolves when all are sent, or `stopped()` says so. */
export async function sendPaced(samples, send, stopped) {
  const piece = RATE / 4;
  const begin = performance.now();
  for (let at = 0; at < samples.length && !stopped(); at += piece) {
    const due = begin + (at / RATE) * 1000 - 1000;
    const wait = due - performance.now();
    if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait));
    if (!stopped()) send(samples.subarray(at, at + piece));
  }
}
