import numpy as np
import pytest

from reconstruct.filters import FILTERS, filter_rows, frequency_response, padded_size, ramp_kernel, window


def test_the_kernel_is_the_band_limited_ramp_of_kak_and_slaney():
    kernel = ramp_kernel(16)
    assert kernel[0] == pytest.approx(1 / 4)
    assert kernel[1] == pytest.approx(-1 / np.pi**2)
    assert kernel[3] == pytest.approx(-1 / (9 * np.pi**2))
    assert kernel[2] == kernel[4] == 0
    np.testing.assert_allclose(kernel[1:], kernel[:0:-1])


def test_the_response_is_the_ramp_except_for_the_constant():
    columns = 500
    response = frequency_response(columns, "ram-lak", 1.0)
    frequencies = np.arange(len(response)) / padded_size(columns)
    np.testing.assert_allclose(response[1:], frequencies[1:], atol=2e-3)
    # Sampled in space, the constant is not lost altogether: it stands for the tails beyond the transform.
    assert 0 < response[0] < 2 / (np.pi**2 * padded_size(columns)) * 2.5


@pytest.mark.parametrize("columns", [1, 2, 31, 100, 257])
def test_the_transform_is_long_enough_not_to_wrap_round(columns):
    assert padded_size(columns) >= 2 * columns


@pytest.mark.parametrize("columns", [5, 64, 101])
def test_filtering_is_the_direct_convolution(columns):
    rows = np.random.default_rng(0).standard_normal((3, columns)).astype(np.float32)
    padded = np.zeros((3, padded_size(columns)), np.float32)
    padded[:, :columns] = rows
    filtered = filter_rows(padded, frequency_response(columns, "ram-lak", 1.0), 1)[:, :columns]
    kernel = ramp_kernel(4 * columns + 4)
    expected = [[sum(row[j] * kernel[abs(i - j)] for j in range(columns)) for i in range(columns)] for row in rows]
    np.testing.assert_allclose(filtered, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "half_way", "end"),
    [("ram-lak", 1, 1), ("shepp-logan", np.sqrt(8) / np.pi, 2 / np.pi), ("cosine", np.sqrt(0.5), 0),
     ("hamming", 0.54, 0.08), ("hann", 0.5, 0)],
)
@pytest.mark.parametrize("cutoff", [1.0, 0.6])
def test_windows(name, half_way, end, cutoff):
    gain = window(name, cutoff, np.array([0.0, 0.5, 1.0]) * cutoff)
    np.testing.assert_allclose(gain, [1, half_way, end], atol=1e-12)
    assert (window(name, 0.6, np.array([0.61, 0.8, 1.0])) == 0).all()


def test_every_filter_name_is_a_window():
    assert FILTERS == ("ram-lak", "shepp-logan", "cosine", "hamming", "hann")
    for name in FILTERS:
        assert np.isfinite(frequency_response(20, name, 0.5)).all()


@pytest.mark.parametrize(
    ("name", "cutoff", "sentence"),
    [("ramlak", 1.0, "got 'ramlak'"), ("hann", 0.0, "got 0.0"), ("hann", 1.5, "got 1.5"), ("hann", np.nan, "nan")],
)
def test_unknown_windows_are_refused(name, cutoff, sentence):
    with pytest.raises(ValueError, match=sentence):
        frequency_response(20, name, cutoff)
