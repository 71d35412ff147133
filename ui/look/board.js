// Anything with data-act inside tells the server that it was chosen: by mouse, touch or keyboard.
element.addEventListener('click', (event) => {
  const chosen = event.target.closest('[data-act]');
  if (!chosen || !element.contains(chosen)) return;
  event.preventDefault();
  trigger('pick', { act: chosen.dataset.act, id: chosen.dataset.id || '' });
});
