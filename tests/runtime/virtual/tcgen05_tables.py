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


STARTS = {"a": 0, "b": 65536}


def numbers_of(a_shape, b_shape, element, a_mode, b_mode):
    """The descriptors' numbers of operands [MN, K] in shared memory, A at 0, B at 64 KiB.

    mode: (swizzle, MN-major). The offsets leave gaps: no layout is dense by accident.
    """
    numbers = {"b_start": STARTS["b"]}
    size = encode(torch.zeros(1), element).element_size()
    for name, (mn, k), (swizzle, mn_major) in (("a", a_shape, a_mode), ("b", b_shape, b_mode)):
        width = {"none": 16, "32B": 32, "64B": 64}.get(swizzle, 128)
        group = 8 * width + 1024  # one swizzle atom and a gap
        along = (mn if mn_major else k) * size // width  # atoms side by side
        if swizzle == "none" and mn_major:
            lbo, sbo = group * along, group
        else:
            lbo, sbo = group, group * (along if mn_major else 1 + (swizzle == "none"))
        if swizzle == "none" and not mn_major:
            sbo = 2 * group
        numbers |= {
            f"{name}_leading": lbo // 16,
            f"{name}_stride": sbo // 16,
            f"{name}_swizzle": SWIZZLES[swizzle][0],
        }
    return numbers


def image_of(a, b, element, a_mode, b_mode):
    """Both operands in shared memory, 128 KiB, and their descriptors' numbers."""
    numbers = numbers_of(a.shape, b.shape, element, a_mode, b_mode)
    image = torch.full((131072,), 0xFF, dtype=torch.uint8)
    for name, matrix, mode in (("a", a, a_mode), ("b", b, b_mode)):
        lbo, sbo = 16 * numbers[f"{name}_leading"], 16 * numbers[f"{name}_stride"]
        lay_out(encode(matrix, element), *mode, lbo, sbo, STARTS[name], image)
    return image.view(torch.int32), numbers


def pair_place(m, n, shape):
    """Block, lane and column of element (m, n) of D with cta_group::2: data paths A and B."""
    rows, columns = shape
    if rows == 256:
        return m // 128, m % 128, n
    return m // 64, m % 64 + 64 * (n // (columns // 2)), n % (columns // 2)


def pair_image_of(a, b, element, a_mode, b_mode):
    """What each block of a pair has in shared memory, and the descriptors of both."""
    parts = [
        image_of(x, y, element, a_mode, b_mode) for x, y in zip(a.chunk(2), b.chunk(2), strict=True)
    ]
    assert parts[0][1] == parts[1][1]
    return [image for image, _ in parts], parts[0][1]


def read_d(cells, m, n, path, *, lane=0, column=0, integer=False, half=False):
    got = torch.zeros(m, n, dtype=torch.float64)
    for i, j in itertools.product(range(m), range(n)):
        at, c = d_place(i, j, (m, n), path)
        got[i, j] = cells[lane + at, column + c].item() if integer else 0
        if not integer:
            cell = cells[lane + at, column + c].reshape(1)
            got[i, j] = cell.view(torch.half)[0] if half else cell.view(torch.float32)[0]
    return got


# Matrix fragments of the data movement shapes: (lane, column) of register r of thread t.
FRAGMENTS = {
    "32dp32b": (1, lambda t, r: (t, r)),
    "16dp64b": (1, lambda t, r: (t // 4 + (8 if t & 1 else 0), 2 * r + (1 if t & 2 else 0))),
    "16dp128b": (2, lambda t, r: (t // 4 + 8 * (r % 2), 4 * (r // 2) + t % 4)),
    "16dp256b": (
        4,
        lambda t, r: (t // 4 + 8 * (r // 2 % 2), 8 * (r // 4) + 2 * (t % 4) + r % 2),
    ),
}
