"""Tables of tcgen05 written from the PTX manual: operand layouts in shared memory, data paths of D,
instruction descriptors."""

import itertools

import torch

# Canonical layouts of operands in shared memory, CuTe notation: (shape, strides) of the major (MN)
# and the K index, in elements; T is elements to 16 bytes, LBO and SBO are the descriptor's offsets.
# By swizzle mode: (code in the descriptor, swizzle bits, base, shift).
SWIZZLES = {
    "none": (0, 0, 4, 3),
    "32B": (6, 1, 4, 3),
    "64B": (4, 2, 4, 3),
    "128B": (2, 3, 4, 3),
    "128B base 32B": (1, 2, 5, 2),
}


def canonical(swizzle: str, mn_major: bool, t: int, lbo: int, sbo: int):
    width = {"none": 1, "32B": 2, "64B": 4}.get(swizzle, 8)
    if mn_major:
        if swizzle == "none":
            return ((t, 1, 99), (1, t, sbo)), ((8, 99), (t, lbo))
        lines = 4 if swizzle == "128B base 32B" else 8
        return ((t, width, 99), (1, t, lbo)), ((lines, 99), (width * t, sbo))
    if swizzle == "none":
        return ((8, 99), (t, sbo)), ((t, 99), (1, lbo))
    return ((8, 99), (width * t, sbo)), ((t, 2), (1, t))


def evaluate(index, layout):
    offset = 0
    for size, stride in zip(*layout, strict=True):
        offset += index % size * stride
        index //= size
    return offset


def swizzled(address, swizzle):
    _, bits, base, shift = SWIZZLES[swizzle]
    return address ^ ((address >> shift) & (((1 << bits) - 1) << base))


def lay_out(matrix, swizzle, mn_major, lbo, sbo, start, image):
    """Writes a matrix [MN, K] of 1, 2 or 4-byte integers into `image` (bytes)."""
    size = matrix.element_size()
    mn_layout, k_layout = canonical(swizzle, mn_major, 16 // size, lbo // size, sbo // size)
    raw = matrix.contiguous().view(torch.uint8).reshape(*matrix.shape, size)
    for mn, k in itertools.product(*map(range, matrix.shape)):
        offset = (evaluate(mn, mn_layout) + evaluate(k, k_layout)) * size
        at = swizzled(start + offset, swizzle)
        image[at : at + size] = raw[mn, k]


def d_place(m, n, shape, path):
    """Lane and column of element (m, n) of D: Data Path Layout Organization."""
    _, columns = shape
    if path == "D":  # M = 128
        return m, n
    if path == "F":  # M = 64: 16 rows to a warp's quarter of the lanes
        return m // 16 * 32 + m % 16, n
    if path == "E":  # .ws, M = 64: column halves in lane halves
        return m + 64 * (n // (columns // 2)), n % (columns // 2)
    if path == "G":  # .ws, M = 32: column quarters in lane quarters
        return m + 32 * (n // (columns // 4)), n % (columns // 4)
    raise ValueError(path)


def idesc(m, n, d_type, a_type, b_type, *, mn_a=0, mn_b=0, negate_a=0, negate_b=0):
    return (
        d_type << 4 | a_type << 7 | b_type << 10 | negate_a << 13 | negate_b << 14
        | mn_a << 15 | mn_b << 16 | n >> 3 << 17 | m >> 4 << 24
    )  # fmt: skip


def signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


def encode(matrix, element):
    """Small integers in the elements' bits."""
    dtype = {
        "f16": torch.half,
        "bf16": torch.bfloat16,
        "tf32": torch.float32,
        "e4m3": torch.float8_e4m3fn,
        "e5m2": torch.float8_e5m2,
        "s8": torch.int8,
        "u8": torch.uint8,
    }[element]
    value = matrix.to(dtype)
    return value.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[value.element_size()])


# element: (kind, type code, K of one instruction, D's type code)
ELEMENTS = {
    "f16": ("f16", 0, 16, 1),
    "bf16": ("f16", 1, 16, 1),
    "tf32": ("tf32", 2, 8, 1),
    "e4m3": ("f8f6f4", 0, 32, 1),
    "e5m2": ("f8f6f4", 1, 32, 1),
    "u8": ("i8", 0, 32, 2),
    "s8": ("i8", 1, 32, 2),
}


def operands(m, n, k, element):
    low = 0 if element == "u8" else -3
    return torch.randint(low, 4, (m, k)), torch.randint(low, 4, (n, k))


def image_of(a, b, element, a_mode, b_mode):
    """Both operands in shared memory, and their descriptors' numbers.

    mode: (swizzle, MN-major). The offsets leave gaps: no layout is dense by accident.
    """
    image = torch.full((131072,), 0xFF, dtype=torch.uint8)
    numbers = {"b_start": 65536}
    for name, matrix, (swizzle, mn_major), start in (
        ("a", a, a_mode, 0),
        ("b", b, b_mode, 65536),
    ):
        raw = encode(matrix, element)
        width = {"none": 16, "32B": 32, "64B": 64}.get(swizzle, 128)
        group = 8 * width + 1024  # one swizzle atom and a gap
        mn, k = raw.shape
        along = (mn if mn_major else k) * raw.element_size() // width  # atoms side by side
        if swizzle == "none" and mn_major:
            lbo, sbo = group * along, group
        else:
            lbo, sbo = group, group * (along if mn_major else 1 + (swizzle == "none"))
        if swizzle == "none" and not mn_major:
            sbo = 2 * group
        lay_out(raw, swizzle, mn_major, lbo, sbo, start, image)
        numbers |= {
            f"{name}_leading": lbo // 16,
            f"{name}_stride": sbo // 16,
            f"{name}_swizzle": SWIZZLES[swizzle][0],
        }
    return image.view(torch.int32), numbers


def read_d(cells, m, n, path, *, lane=0, column=0, integer=False, half=False):
    got = torch.zeros(m, n, dtype=torch.float64)
    for i, j in itertools.product(range(m), range(n)):
        at, c = d_place(i, j, (m, n), path)
        got[i, j] = cells[lane + at, column + c].item() if integer else 0
        if not integer:
            cell = cells[lane + at, column + c].reshape(1)
            got[i, j] = cell.view(torch.half)[0] if half else cell.view(torch.float32)[0]
    return got
