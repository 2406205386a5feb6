// An answer of the library comes whole and is often longer than the view, and Gradio scrolls to its end, in Compare with
// each update of the others: show a new answer from its question on, until the person moves.
const BELOW_THE_BUTTON = 28; // pixels: Gradio's button that clears, or a label, lies over the top of the view
const AFTER_MS = [350, 1000, 2000];
const answers = new Map(); // of each conversation of the page, how many there are
let moved = 0; // how often the person did something
["wheel", "touchstart", "keydown", "pointerdown"].forEach((name) =>
  document.addEventListener(name, () => { moved += 1; }, { capture: true, passive: true }));
const showQuestion = (chat) => {
  const questions = chat.querySelectorAll(".user-row");
  const view = chat.querySelector(".bubble-wrap");
  const last = questions[questions.length - 1];
  if (!last || !view) return;
  view.scrollTop += last.getBoundingClientRect().top - view.getBoundingClientRect().top - BELOW_THE_BUTTON;
};
const showIn = (chat) => {
  const before = answers.get(chat.id) || 0;
  const now = chat.querySelectorAll(".bot-row").length;
  answers.set(chat.id, now);
  if (now <= before) return;
  const movedBefore = moved;
  AFTER_MS.forEach((wait, at) => setTimeout(() => { if (!at || moved === movedBefore) showQuestion(chat); }, wait));
};
const show = () => document.querySelectorAll("#chat, #pair > .block").forEach(showIn);
new MutationObserver(show).observe(document.body, { childList: true, subtree: true });
