"""The tab as a test sees it."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from tensorboard_plugin.conftest import wait_for


class Page:
    """TensorBoard in a browser, with the frame of the tab selected."""

    def __init__(self, driver: Any, address: str, *, dark: bool = False, **state: str) -> None:
        self.driver = driver
        self.state = state
        address = f"{address}/?darkMode={'true' if dark else 'false'}#unit_roles"
        for key, value in state.items():
            address += f"&{quote(f'p.unit_roles.{key}')}={quote(str(value), safe='')}"
        driver.switch_to.default_content()
        driver.get("about:blank")
        driver.get_log("browser")  # what others have left there
        driver.get(address)
        self.enter()

    def enter(self) -> None:
        frame = wait_for("the frame of the tab", lambda: self.driver.find_elements("css selector", "iframe"))
        self.driver.switch_to.frame(frame[0])
        self.drawn()

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    @property
    def view(self) -> str:
        return str(self.js("return document.querySelector('[role=tab][aria-selected=true]')?.id.slice(4) || ''"))

    def drawn(self) -> None:
        """Wait until the view in sight shows what it should."""
        idle = "const a = window.unitRoles; return a && a.idle && (a.message.hidden ? 'drawn' : 'message')"
        wait_for("the view to be drawn", lambda: self.js(idle))

    def show(self, **state: str) -> None:
        self.js("window.unitRoles.set(arguments[0])", state)
        self.drawn()

    def find(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def text(self, selector: str = "main") -> str:
        found = """return [...document.querySelectorAll(arguments[0])]
            .filter(element => element.getClientRects().length).map(element => element.innerText)"""
        return "\n".join(self.js(found, selector))

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()
        self.drawn()

    def address(self) -> str:
        return str(self.js("return decodeURIComponent(parent.location.hash)"))

    def raster(self) -> dict[str, Any]:
        """Size and colours of the raster in sight: how many pixels have which colour."""
        return dict(
            self.js(
                """const canvas = [...document.querySelectorAll('.raster canvas')].find(c => c.offsetParent);
                const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
                const colours = {};
                for (let i = 0; i < pixels.length; i += 4) {
                  const hex = '#' + [0, 1, 2].map(k => pixels[i + k].toString(16).padStart(2, '0')).join('');
                  if (pixels[i + 3] === 255) colours[hex] = (colours[hex] || 0) + 1;
                }
                return colours;"""
            )
        )

    def errors(self) -> list[str]:
        """What the browser complains about; TensorBoard's own page has complaints of its own."""
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] == "SEVERE" and "/unit_roles/" in entry["message"]
        ]
