// The first-use notice: remembered in this browser only. Storage can be blocked; then it shows each time.
const notice = element.querySelector(".first-use");
const key = "medical-assistant-notice-read";
let read = false;
try { read = localStorage.getItem(key) === "yes"; } catch (error) { /* storage is blocked */ }
notice.hidden = read;
notice.querySelector("button").addEventListener("click", () => {
  notice.hidden = true;
  try { localStorage.setItem(key, "yes"); } catch (error) { /* storage is blocked */ }
});

// Gradio marks the example buttons as a list without list items, which screen readers cannot follow.
const unmark = () => document.querySelectorAll(".examples[role=list]").forEach((list) => list.removeAttribute("role"));
new MutationObserver(unmark).observe(document.body, { childList: true, subtree: true });
unmark();
