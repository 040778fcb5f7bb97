"""Which warnings the tests take for errors: those of the package and of the tests, not those of other packages."""

import warnings

import pytest


@pytest.mark.parametrize("module", ["advdim", "advdim.measure.gradients", "tests.measure.test_damage", "helpers.nets"])
def test_a_warning_of_ours_is_an_error(module):
    with pytest.raises(DeprecationWarning, match="to be removed"):
        warnings.warn_explicit("to be removed", DeprecationWarning, "file.py", 1, module=module)


@pytest.mark.parametrize("module", ["matplotlib._fontconfig_pattern", "torch.nn.modules.conv", "pyparsing"])
def test_a_warning_of_others_is_shown(module):
    with warnings.catch_warnings(record=True) as shown:
        warnings.warn_explicit("to be removed", DeprecationWarning, "file.py", 1, module=module)
    assert len(shown) == 1
