"use strict";
// The page is whole without this: it adds a moving line under a film, copied commands, and a choice between light and dark.
(() => {
  const root = document.documentElement;
  const themes = ["auto", "light", "dark"];
  const button = document.getElementById("theme");
  let theme = "auto";
  try { theme = localStorage.getItem("flowact-report-theme") || "auto"; } catch { /* a page from a file may have no storage */ }
  const show = () => {
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    button.textContent = `theme: ${theme}`;
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    try { localStorage.setItem("flowact-report-theme", theme); } catch { /* as above */ }
    show();
  });
  show();

  // the dataset lies two folders above the page, unless the page was copied away
  const path = decodeURIComponent(location.pathname);
  const folder = location.protocol === "file:" && /\/report\/index\.html$/.test(path) ? path.slice(0, -"/report/index.html".length) : null;
  const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);
  for (const copy of document.querySelectorAll("button[data-key]")) {
    copy.hidden = false;
    copy.addEventListener("click", async () => {
      const text = `flowact-data explain ${quoted(folder ?? copy.dataset.dataset)} ${copy.dataset.key}`;
      try { await navigator.clipboard.writeText(text); copy.textContent = "copied"; } catch { window.prompt("Copy:", text); }
      setTimeout(() => { copy.textContent = "explain"; }, 1500);
    });
  }

  for (const film of document.querySelectorAll(".film")) {
    const video = film.querySelector("video");
    const sheet = film.querySelector(".score-sheet");
    if (!video || !sheet) continue;
    const now = document.createElement("span");
    now.className = "now";
    sheet.append(now);
    const seconds = Number(sheet.dataset.seconds);
    const lines = [...film.querySelectorAll("li[data-start]")];
    const draw = () => {
      now.style.left = `${Math.min(video.currentTime / seconds, 1) * 100}%`;
      for (const line of lines) line.classList.toggle("on", video.currentTime >= Number(line.dataset.start) && video.currentTime < Number(line.dataset.end));
      if (!video.paused) requestAnimationFrame(draw);
    };
    for (const event of ["play", "seeked", "pause", "timeupdate"]) video.addEventListener(event, draw);
    const seek = (share) => { video.currentTime = Math.max(0, Math.min(share, 0.999)) * seconds; };
    sheet.addEventListener("click", (event) => {
      const box = sheet.getBoundingClientRect();
      seek((event.clientX - box.left) / box.width);
    });
    sheet.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step) { seek((video.currentTime + step / 25) / seconds); event.preventDefault(); }
      if (event.key === " ") { if (video.paused) video.play(); else video.pause(); event.preventDefault(); }
    });
    sheet.tabIndex = 0;
    sheet.setAttribute("role", "slider");
    sheet.setAttribute("aria-valuemin", "0");
    sheet.setAttribute("aria-valuemax", String(seconds));
    video.addEventListener("timeupdate", () => sheet.setAttribute("aria-valuenow", video.currentTime.toFixed(2)));
    sheet.setAttribute("aria-valuenow", "0");
  }
  // one film at a time
  const videos = [...document.querySelectorAll("video")];
  for (const video of videos) video.addEventListener("play", () => videos.forEach((other) => other !== video && other.pause()));
})();
