"""Curves of hand-written logs: lines, bands, labels and scales, worked out by hand."""
import io

import pytest
from PIL import Image

from report_logs import write_run
from tools import output
from tools.report import curves, logs


@pytest.fixture
def figures(monkeypatch):
    """All figures that a test draws."""
    drawn = []

    class Kept(curves.Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            drawn.append(self)

    monkeypatch.setattr(curves, 'Figure', Kept)
    return drawn


def names(*folders):
    return curves.labels(logs.group(logs.read(folders)))


def points(axes):
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}


def bands(axes):
    return [(band.get_datalim(axes.transData).y0, band.get_datalim(axes.transData).y1)
            for band in axes.collections]


def test_lines_are_named_by_what_differs(demo, tmp_path):
    assert names(demo) == ['WRN-10-1, alone', 'WRN-10-1, AT', 'WRN-10-1, KD', 'WRN-16-1, alone']
    assert names(*demo.glob('*/at'), *demo.glob('*/kd')) == ['AT', 'KD']
    assert names(demo / '1' / 'at') == ['WRN-10-1']
    assert names(demo / '1' / 'teacher', demo / '1' / 'alone') == ['WRN-10-1', 'WRN-16-1']
    write_run(tmp_path / 'more' / 'at', [50], teacher_id='other', beta=1e3)
    assert names(demo / '1' / 'at', tmp_path / 'more') == ['from WRN-16-1', 'from other']
    write_run(tmp_path / 'longer' / 'alone', [50, 60, 70])
    assert names(demo / '1' / 'alone', tmp_path / 'longer') == ['2 epochs', '3 epochs']


def test_settings_are_named_where_they_differ(tmp_path):
    for i, p in enumerate([1.0, 2.0, 4.0]):
        write_run(tmp_path / str(i), [50], teacher_id='t', beta=1e3, map_p=p)
    assert names(tmp_path) == ['map_p 1', 'map_p 2', 'map_p 4']
    write_run(tmp_path / 'kd', [50], teacher_id='t', alpha=0.9)
    assert names(tmp_path) == ['AT, map_p 1', 'AT, map_p 2', 'AT, map_p 4', 'KD']


def test_curves_are_medians_in_bands(demo, figures):
    image = Image.open(io.BytesIO(output.drawn(curves.errors(logs.read([demo]), 'A title'), '.png')))
    assert image.format == 'PNG' and min(image.size) > 500 and len(image.getcolors(1 << 20)) > 4
    axes, = figures[0].axes
    assert list(points(axes)) == [text.get_text() for text in axes.get_legend().get_texts()]
    assert points(axes) == {
        'WRN-10-1, alone': [(1, 80), (2, 30)], 'WRN-10-1, AT': [(1, 75), (2, 22)],
        'WRN-10-1, KD': [(1, 75), (2, 52)], 'WRN-16-1, alone': [(1, 50), (2, 5), (3, 7)]}
    assert bands(axes) == [(28, 80), (21, 75), (40, 75), (5, 50)]
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ('A title', 'epoch', 'test error, %')
    assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > 80
    assert len({line.get_color() for line in axes.lines}) == 4


def test_each_data_set_has_a_panel(tmp_path, figures):
    for name in ('scenes', 'cub'):
        write_run(tmp_path / name, [50], dataset=name)
    curves.errors(logs.read([tmp_path]), 'Table 4')
    assert [axes.get_title() for axes in figures[0].axes] == ['Table 4, cub', 'Table 4, scenes']


@pytest.mark.parametrize(('seconds', 'unit', 'scale'), [
    (20, 's', 1), (59, 's', 1), (60, 'min', 60), (3599, 'min', 60), (3600, 'h', 3600), (40000, 'h', 3600)])
def test_curves_against_time(tmp_path, figures, seconds, unit, scale):
    """Two epochs of 3 seeds, half, once and twice as long: the median is the middle one's."""
    for seed, factor in enumerate([0.5, 1, 2]):
        write_run(tmp_path / str(seed), [50, 60], seed=seed, seconds=factor * seconds)
    curves.errors(logs.read([tmp_path]), x='seconds')
    axes, = figures[0].axes
    assert points(axes) == {'WRN-10-1': [(seconds / scale, 50), (2 * seconds / scale, 40)]}
    assert axes.get_xlabel() == f'time of training, {unit}' and axes.get_xlim()[0] == 0


def test_first_epochs_do_not_press_the_last_ones_together(tmp_path, figures):
    write_run(tmp_path / 'a', [10, 20, 92])
    write_run(tmp_path / 'b', [10, 20, 95], depth=16)
    curves.errors(logs.read([tmp_path]))
    assert figures[0].axes[0].get_ylim() == (0, 32)


def test_same_logs_same_svg(demo):
    svg, again = (output.drawn(curves.errors(logs.read([demo])), '.svg') for _ in range(2))
    assert svg == again and svg.endswith(b'</svg>\n')


def test_more_lines_than_colours(tmp_path, figures):
    for i in range(9):
        write_run(tmp_path / str(i), [50, 60], width=i + 1)
    curves.errors(logs.read([tmp_path]))
    pairs = {(line.get_color(), line.get_linestyle()) for line in figures[0].axes[0].lines}
    assert len(pairs) == 9
    assert figures[0].get_figwidth() > 10  # the legend stands beside the lines


def test_losses_have_a_panel_for_each_term_and_group(tmp_path, figures):
    for seed, at in enumerate([1.0, 2.0, 4.0]):
        write_run(tmp_path / f'at{seed}', [50, 60], seed=seed, teacher_id='t', beta=1e3,
                  at_losses=[[at, 0], [at / 10, 0]])
    write_run(tmp_path / 'third', [50], teacher_id='t', beta=1e3, at_groups=[2], at_losses=[[3.0, 0]])
    write_run(tmp_path / 'both', [50], teacher_id='t', beta=1e3, hint_beta=1.0,
              at_losses=[[0.5, 0], [0.25, 0]], hint_losses=[[7.0, 0], [8.0, 0]])
    write_run(tmp_path / 'alone', [50])
    curves.losses(logs.read([tmp_path]))
    panels = {axes.get_title(): axes for axes in figures[0].axes}
    every, third, both = 'AT, at_groups all', 'AT, at_groups [2]', 'AT+F-ActT'
    assert {title: points(axes) for title, axes in panels.items()} == {
        'AT, group 0': {every: [(1, 2), (2, 2)], both: [(1, 0.5)]},
        'AT, group 1': {every: [(1, 0.2), (2, 0.2)], both: [(1, 0.25)]},
        'AT, group 2': {third: [(1, 3)]},
        'F-ActT, group 0': {both: [(1, 7)]}, 'F-ActT, group 1': {both: [(1, 8)]}}
    assert bands(panels['AT, group 0'])[0] == (1, 4)
    assert {axes.get_yscale() for axes in panels.values()} == {'log'}
    legend, = figures[0].legends
    assert sorted(text.get_text() for text in legend.get_texts()) == sorted([every, third, both])
    colours = {line.get_label(): line.get_color() for axes in panels.values() for line in axes.lines}
    assert len(set(colours.values())) == 3
