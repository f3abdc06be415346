from tests.study.conftest import spec_of

__all__ = ["spec_of"]
