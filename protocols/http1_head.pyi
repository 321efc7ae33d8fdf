FAULTS: dict[int, tuple[int, str]]
