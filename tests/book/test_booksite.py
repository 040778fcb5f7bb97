"""What the build of the site makes of the pages that Sphinx writes."""

import booksite
import pytest


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("eps_p E||grad L||_q / (eps_inf sqrt(tau d))", "ε<sub>p</sub> E‖∇L‖<sub>q</sub> / (ε<sub>∞</sub> √(τ d))"),
        ("E ||grad f||_2^2 / sqrt(d)", "E ‖∇f‖<sub>2</sub><sup>2</sup> / √d"),
        ("l_inf attack, m_4^-2", "ℓ<sub>∞</sub> attack, m<sub>4</sub><sup>−2</sup>"),
        ("dilated BN he_unit, muP, mobilenet_v2", "dilated BN he_unit, muP, mobilenet_v2"),
    ],
)
def test_headings_of_tables_are_typeset(text, written):
    assert booksite.typeset(text) == written


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("-0.04 [-0.05, 1e-04]", "−0.04 [−0.05, 1·10<sup>−4</sup>]"),
        ("1.97 +- 0.06", "1.97 ± 0.06"),
        ("2026-11-22, a2c47e506772, --data imagenette-224", "2026-11-22, a2c47e506772, --data imagenette-224"),
        ("||g||_1 < eps_inf", "||g||_1 < eps_inf"),
    ],
)
def test_cells_have_their_numbers_typeset_and_nothing_else(text, written):
    assert booksite.typeset(text, "td") == written


def test_a_formula_keeps_its_punctuation_and_brackets():
    formula = r'<span class="math notranslate nohighlight">\(x_1\)</span>'
    kept = booksite.FORMULA.sub(booksite._kept_together, f"by ({formula}), and {formula} too")
    assert kept == f'by <span class="together">({formula}),</span> and {formula} too'


def test_code_in_the_colour_around_it_has_no_element():
    code = '<span class="n">x</span> <span class="o">=</span> <span class="p">(</span><span class="mi">1</span>'
    assert booksite.PLAIN_CODE.sub(r"\1", code) == 'x <span class="o">=</span> (<span class="mi">1</span>'
