// One clip at a time: the round buttons play and stop the sounds that are in the page.
document.querySelectorAll(".play").forEach(button => {
  const box = button.closest(".sound"), audio = box.querySelector("audio");
  const show = playing => {
    box.classList.toggle("playing", playing);
    button.textContent = playing ? "\u275A\u275A" : "\u25B6\uFE0E";
  };
  audio.addEventListener("ended", () => show(false));
  audio.addEventListener("pause", () => show(false));
  button.addEventListener("click", () => {
    document.querySelectorAll("audio").forEach(other => other === audio || other.pause());
    if (!audio.paused) return audio.pause();
    audio.currentTime = 0;
    audio.play();
    show(true);
  });
});
