"""What `import ptsearch` gives, and what it costs."""

import subprocess
import sys


def test_the_public_names_do_not_import_torch() -> None:
    """`PrecisionEnsemble` is looked up when it is used."""
    code = "import sys; from ptsearch import Variant; print('torch' in sys.modules)"
    code += "; import ptsearch; print(sorted(ptsearch.__all__))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["False", "['PrecisionEnsemble', 'Variant']"]
