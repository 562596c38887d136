// A saved page: its tiles open the cards below in the lightbox.

const cards = [...document.querySelectorAll("article")];
const box = makeLightbox(
  document.body,
  () => cards.length,
  (number, body) => {
    body.innerHTML = cards[number].innerHTML;
  },
);
document.querySelectorAll(".tiles a").forEach((link, number) => {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    box.open(number);
  });
});
