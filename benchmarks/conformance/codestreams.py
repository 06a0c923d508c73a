"""A codestream that no encoder of the test environment makes: a ramp of 32 × 32 pixels in lossless HTJ2K."""

from __future__ import annotations

import base64

import numpy as np

HTJ2K_ROWS = HTJ2K_COLUMNS = 32
HTJ2K_PIXELS = np.add.outer(7 * np.arange(HTJ2K_ROWS), 5 * np.arange(HTJ2K_COLUMNS)).astype(np.uint8)
"""What the codestream decodes to: (7 row + 5 column) modulo 256."""

HTJ2K_FRAME = base64.b64decode(
    "/0//UQApQAAAAAAgAAAAIAAAAAAAAAAAAAAAIAAAACAAAAAAAAAAAAABBwEB/1AACAACAAAAAv9SAAwAAgABAAUEBEAB/1wAEyBI"
    "UFBQUFBQUFBQUFBQSEhI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAZcAAf+TwCXvAAd0AMASwBLAEoCSAQd0AOQB"
    "B3QAwwCHdADAE8ATwBUAACSGACKUAADawgBAlAACZg5/AGOUAMAV0AVsAWgABssSB2gcX1mGnAwgVgAEHeBswS2qgxFG01YAGKgg"
    "Ce2Fxa42/oUR9ENWAMAXQwBdDAFvAEQPRSowg9dJy7ByS8Go5M4wIBT15osuJPiknBcVA8J9AAsSIIhd66SM8NTKHsRsngYDFTye"
    "+IdCEAC4vRW9FCC9AIN2JEDuTB0mMQhc76ixG5NAxfUGBD6NRe9hRDPMAMAu+gF6BALrAAAAeIj6f77v/zzqiO97/z6fD6H3eX7+"
    "9zvgPx7/V88D/Pn5IjFOJb4ALTspj+SEoQZMELi1BfYXA6enQn0BHp7/cOfx9fH48Hh9/Hr8e3h8+np8MRnmI94v5ouBgcEgSfL/"
    "ZLBESe/ae1evghM5ZDAiMy4TCg+LBHt2FEC9AX7+/z/+/Pl/fz+/P7/f7/9z/3v/d/9ksG4k3iBRgmGDMoKD5YQidIQUYLcB/9k="
)
"""Encoded with OpenJPH."""
