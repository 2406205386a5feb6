"""The red banner speaks the language of the message."""

from medical_assistant.web.turns import receive


def test_the_banner_speaks_the_language_of_the_message() -> None:
    banner = receive("mi beb\u00e9 est\u00e1 azul y no respira", [], busy=False, country="MX").banner
    assert banner is not None and banner["language"] == "es"
    assert banner["heading"].startswith("Puede ser una emergencia")
    assert banner["texts"]["or_local"].startswith("o al n\u00famero") and banner["emergency"]["dial"] == "911"
