// An answer of the library comes whole and is often longer than the view, and Gradio scrolls to its end: show a new
// answer from its question on. It is done once, so that nobody is scrolled while reading.
const BELOW_THE_BUTTON = 28; // pixels: Gradio's button that clears lies over the top of the view
let answers = 0;
const show = () => {
  const before = answers;
  answers = document.querySelectorAll("#chat .bot-row").length;
  if (answers <= before) return;
  setTimeout(() => {
    const questions = document.querySelectorAll("#chat .user-row");
    const view = document.querySelector("#chat .bubble-wrap");
    const last = questions[questions.length - 1];
    if (!last || !view) return;
    view.scrollTop += last.getBoundingClientRect().top - view.getBoundingClientRect().top - BELOW_THE_BUTTON;
  }, 350);
};
new MutationObserver(show).observe(document.body, { childList: true, subtree: true });
