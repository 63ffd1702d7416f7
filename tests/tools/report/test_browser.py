"""The page about a model in a browser: it works for everybody."""

import json
import shutil
from pathlib import Path

from mmvisattn.visualization.panels import colour

import cv2
import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver import Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from tools.analysis.report_page import maps

from .pages import SELECTS, decode


@pytest.fixture(scope='module')
def chromium():
    """A headless Chromium that notes the errors of pages."""
    binary = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    driver = shutil.which('chromedriver')
    if not (binary and driver):
        pytest.skip('no Chromium with its chromedriver here (Debian: apt-get install chromium chromium-driver)')
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'):
        options.add_argument(argument)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    browser.set_script_timeout(60)
    yield browser
    browser.quit()


class Window:
    """A page in a browser."""

    def __init__(self, browser, page: Path, width: int = 1100, scheme: str = 'light') -> None:
        self.browser = browser
        size = dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
        browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)
        media = dict(features=[dict(name='prefers-color-scheme', value=scheme)])
        browser.execute_cdp_cmd('Emulation.setEmulatedMedia', media)
        browser.get(page.as_uri())
        self.settle()

    def run(self, script: str, *args: object):
        return self.browser.execute_script(f'return {script}', *args)

    def settle(self) -> None:
        """Wait until what was chosen last is drawn."""
        self.browser.execute_async_script('const done = arguments[0]; draw().then(done)')

    def element(self, name: str):
        return self.browser.find_element(By.ID, name)

    def pixels(self) -> np.ndarray:
        """The map, (H, W, 4), red, green, blue, opacity."""
        script = "(c => [c.height, c.width, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]])(map)"
        height, width, values = self.run(script)
        return np.array(values, np.uint8).reshape(height, width, 4)

    def screenshot(self, name: str) -> np.ndarray:
        element = self.element(name)
        self.run('arguments[0].scrollIntoView()', element)
        content = np.frombuffer(element.screenshot_as_png, np.uint8)
        return cv2.imdecode(content, cv2.IMREAD_COLOR)

    def errors(self) -> list[dict]:
        return self.browser.get_log('browser')


def test_it_loads_without_an_error_and_from_nowhere_else(chromium, page):
    window = Window(chromium, page)
    assert window.errors() == []
    loaded = window.run("performance.getEntriesByType('resource').map(one => one.name)")
    assert all(name.startswith('data:') for name in loaded)
    for image in chromium.find_elements(By.TAG_NAME, 'img'):
        assert window.run('arguments[0].complete && arguments[0].naturalWidth', image) > 10
    for name in ('main', 'stage', 'legend'):
        if name != 'legend' or window.element(name).is_displayed():
            assert window.screenshot(name).std() > 5  # not blank


def test_choosing_changes_the_picture(chromium, page):
    window = Window(chromium, page)
    changed = []
    for name in SELECTS:
        select = Select(window.element(name))
        if len(select.options) == 1:
            continue
        changed.append(name)
        before, drawn = window.pixels(), window.screenshot('stage')
        select.select_by_index(len(select.options) - 1)
        window.settle()
        after = window.pixels()
        assert before.shape != after.shape or np.abs(before.astype(int) - after).max() > 5, name
        screenshot = window.screenshot('stage')
        assert drawn.shape != screenshot.shape or np.abs(drawn.astype(int) - screenshot).max() > 5, name
        assert select.first_selected_option.text in window.element('told').text
        assert window.run('map.getAttribute("aria-label")') == window.element('told').text
    # A stock model has a single kind of maps, a plain ViT a single level of features.
    assert len(changed) >= 3 and 'view' in changed and 'head' in changed
    assert window.errors() == []


def test_colours_are_those_of_the_drawings(chromium, segmentor):
    window = Window(chromium, segmentor)
    views = json.loads(window.run("document.getElementById('data').textContent"))['views']
    layer = views[0]['layers'][0]
    heads = layer['heads']
    grey = decode(layer['maps'])
    grey = (grey if grey.ndim == 2 else grey[..., 0]).reshape(len(heads), -1, grey.shape[1])
    assert heads[0]['palette'] == 'signed'
    expected = colour(np.linspace(-1, 1, 256), signed=True)[grey[0]]
    assert np.abs(window.pixels()[..., 2::-1].astype(int) - expected).max() <= 6  # decoders of WebP differ


def test_cells_that_were_not_chosen_are_dark(chromium, flex):
    window = Window(chromium, flex)
    Select(window.element('what')).select_by_visible_text(maps.WHAT['cells'])
    window.settle()
    pixels = window.pixels()
    assert set(np.unique(pixels[..., 3])) == {0, 255} and pixels[..., :3].max() == 0
    assert not window.element('legend').is_displayed() and 'cells are chosen' in window.element('told').text


def test_it_fits_a_phone(chromium, page):
    window = Window(chromium, page, width=360)
    assert window.run('innerWidth') == 360
    assert window.run('document.documentElement.scrollWidth') <= 360
    for details in chromium.find_elements(By.TAG_NAME, 'details'):
        window.run('arguments[0].open = true', details)
    assert window.run('document.documentElement.scrollWidth') <= 360
    for name in [*SELECTS, 'strength']:
        box = window.element(name).rect
        assert box['x'] >= 0 and box['x'] + box['width'] <= 360 and box['height'] >= 40
    assert window.screenshot('stage').std() > 5 and window.errors() == []


def test_the_keyboard_is_enough(chromium, page):
    window = Window(chromium, page)
    count = window.run(
        "(window.stops = [...document.querySelectorAll('a[href], button, select, input, summary, [tabindex]')]"
        '.filter(one => one.checkVisibility())).length'
    )
    reached = []
    for _ in range(count):
        window.browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(window.run('stops.indexOf(document.activeElement)'))
        assert window.run("getComputedStyle(document.activeElement).outlineStyle !== 'none'")
    assert reached == list(range(count))  # in the order of the page

    chosen = window.pixels()
    window.run("document.getElementById('view').focus()")
    window.browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    window.settle()
    assert window.run('view.selectedIndex') == 1 and not np.array_equal(chosen, window.pixels())
    window.run("document.getElementById('strength').focus()")
    before = float(window.run('map.style.opacity'))
    window.browser.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    assert 0 < float(window.run('map.style.opacity')) < before
    buttons = chromium.find_elements(By.CSS_SELECTOR, 'button')
    if buttons:
        window.run('arguments[0].focus()', buttons[-1])
        buttons[-1].send_keys(Keys.ENTER)
        window.settle()
        assert window.run('document.activeElement.id') == 'view'
        assert window.run('view.selectedIndex') == int(buttons[-1].get_attribute('data-view'))
        assert Select(window.element('view')).first_selected_option.text in window.element('told').text


def test_a_screen_reader_is_told_what_is_chosen(chromium, page):
    window = Window(chromium, page)
    nodes = chromium.execute_cdp_cmd('Accessibility.getFullAXTree', {})['nodes']
    shown = [node for node in nodes if not node.get('ignored')]

    def names(role: str) -> list[str]:
        return [node.get('name', {}).get('value', '') for node in shown if node['role'].get('value') == role]

    assert names('combobox') == ['Picture', 'Map', 'Layer', 'Head'] and names('slider') == ['Strength of the map']
    assert window.element('told').text in names('image') and all(names('image'))
    assert all(names('table')) and all(names('button')) and all(names('region'))
    assert {'main', 'navigation', 'banner', 'contentinfo'} <= {node['role'].get('value') for node in shown}
    (live,) = [node for node in shown if node['role'].get('value') == 'status']
    assert {'name': 'live', 'value': {'type': 'token', 'value': 'polite'}} in live['properties']


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [360, 1100])
def test_no_rule_of_accessibility_is_broken(chromium, page, scheme, width):
    """Contrast of at least 4.5, names of controls, order of headings and what else axe knows."""
    axe = pytest.importorskip('axe_core_python.selenium', reason='the packages of requirements/tests.txt are missing')
    window = Window(chromium, page, width, scheme)
    assert window.run("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == 'dark')
    for details in chromium.find_elements(By.TAG_NAME, 'details'):
        window.run('arguments[0].open = true', details)
    found = axe.Axe().run(chromium)
    broken = [(rule['id'], node['html'][:100]) for rule in found['violations'] for node in rule['nodes']]
    assert broken == []
    assert 'color-contrast' in [rule['id'] for rule in found['passes']]
    unsure = {check['message'] for rule in found['incomplete'] for node in rule['nodes'] for check in node['any']}
    assert unsure <= {'Element content is too short to determine if it is actual text content'}
