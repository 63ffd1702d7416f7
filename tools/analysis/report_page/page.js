'use strict';

// The maps are grey pictures; their colours are put on here, so that a page holds each number once.
const data = JSON.parse(document.getElementById('data').textContent);
const [view, what, layer, head, strength, stage, photo, map, legend, told] =
  ['view', 'what', 'layer', 'head', 'strength', 'stage', 'photo', 'map', 'legend', 'told']
    .map(id => document.getElementById(id));
const CELLS = 'cells';  // no palette: what was not chosen is darkened
let latest = 0;

function bytes(base64) {
  return Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
}

const palettes = Object.fromEntries(Object.entries(data.palettes).map(([name, text]) => [name, bytes(text)]));
palettes[CELLS] = new Uint8Array(256 * 3);

function fill(select, names) {
  const before = select.value;
  const added = names.map(name => {
    const option = document.createElement('option');
    option.textContent = name;
    return option;
  });
  select.replaceChildren(...added);
  if (names.includes(before)) select.value = before;
}

function layers() {
  return data.views[view.selectedIndex].layers.filter(one => one.what === what.value);
}

function paint(pixels, palette) {
  const colours = palettes[palette];
  for (let i = 0; i < pixels.data.length; i += 4) {
    const grey = pixels.data[i];
    pixels.data.set(colours.subarray(3 * grey, 3 * grey + 3), i);
    pixels.data[i + 3] = palette === CELLS ? 255 - grey : 255;
  }
}

async function draw() {
  const number = ++latest;
  const shown = data.views[view.selectedIndex];
  const own = layers()[layer.selectedIndex];
  const one = own.heads[head.selectedIndex];
  const maps = new Image();
  maps.src = own.maps;
  photo.src = shown.photo;
  await Promise.all([maps.decode(), photo.decode()]);
  if (number !== latest) return;  // something else was chosen meanwhile
  const height = maps.naturalHeight / own.heads.length;
  map.width = maps.naturalWidth;
  map.height = height;
  const context = map.getContext('2d', { willReadFrequently: true });
  context.drawImage(maps, 0, -height * head.selectedIndex);
  const pixels = context.getImageData(0, 0, map.width, map.height);
  paint(pixels, one.palette);
  context.putImageData(pixels, 0, 0);
  stage.classList.toggle('over', one.palette !== CELLS);
  drawLegend(one);
  told.textContent = `${shown.name}: ${own.what}, ${own.name}, ${one.name}; ${one.told}.`;
  map.setAttribute('aria-label', told.textContent);
}

function drawLegend(one) {
  legend.parentElement.hidden = one.palette === CELLS;
  [legend.previousElementSibling.textContent, legend.nextElementSibling.textContent] = one.ends;
  const context = legend.getContext('2d', { willReadFrequently: true });
  const pixels = context.createImageData(256, 1);
  for (let i = 0; i < 256; i++) pixels.data[4 * i] = i;
  paint(pixels, one.palette);
  context.putImageData(pixels, 0, 0);
}

// A choice keeps the others below it where they still exist.
function choose(from) {
  const steps = [
    [view, () => data.views.map(one => one.name)],
    [what, () => [...new Set(data.views[view.selectedIndex].layers.map(one => one.what))]],
    [layer, () => layers().map(one => one.name)],
    [head, () => layers()[layer.selectedIndex].heads.map(one => one.name)],
  ];
  for (const [select, names] of steps.slice(from)) fill(select, names());
  return draw();
}

[view, what, layer].forEach((select, i) => select.addEventListener('change', () => choose(i + 1)));
head.addEventListener('change', draw);
strength.addEventListener('input', () => { map.style.opacity = strength.value / 100; });
document.querySelectorAll('[data-view]').forEach(button => button.addEventListener('click', () => {
  view.selectedIndex = Number(button.dataset.view);
  choose(1);
  view.focus();
}));
map.style.opacity = strength.value / 100;
choose(0);
