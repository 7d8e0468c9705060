"""The service and its tiny bundles, as in the tests of mm-serve."""

from tests.serve.conftest import arithmetic, endless, served  # noqa: F401
