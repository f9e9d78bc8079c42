"""Images a second and time spent waiting: metrics, the line in the log, the warning."""

import logging

import pytest
from detectron2.engine import TrainerBase
from detectron2.utils.events import EventStorage

from defcn_d2.engine import throughput
from defcn_d2.engine.throughput import MetricPrinter, Throughput


class Clock:
    """A time that passes when told to."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Waiting(TrainerBase):
    """Steps of ten seconds, of which the data take ``waits(iteration)``."""

    def __init__(self, clock: Clock, waits):
        super().__init__()
        self.clock, self.waits = clock, waits

    def run_step(self):
        self.clock.now += 10
        self.storage.put_scalar("data_time", self.waits(self.iter))


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    monkeypatch.setattr(throughput, "available_cores", lambda: 4)
    return clock


def train(clock: Clock, waits, steps: int, num_workers: int = 2, start: int = 0) -> EventStorage:
    trainer = Waiting(clock, waits)
    trainer.register_hooks([Throughput(images=16, num_workers=num_workers)])
    trainer.train(start, start + steps)
    return trainer.storage


def test_metrics(clock):
    latest = train(clock, lambda i: i, 4).latest()
    assert latest["images_per_second"] == (1.6, 3)
    assert latest["data_share"] == (0.3, 3)


def warnings(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_warning_once_in_a_while(clock, caplog):
    train(clock, lambda i: 4, 2100, start=1000)
    assert (
        warnings(caplog)
        == [
            "Training waits for its data in 40 % of the time of the last 50 steps: raise "
            "DATALOADER.NUM_WORKERS, now 2 a process"
        ]
        * 2
    )


def test_no_workers_to_add(clock, caplog):
    train(clock, lambda i: 4, 100, num_workers=4)
    assert len(warnings(caplog)) == 1 and "is 4 a process on 4 cores already" in caplog.text


@pytest.mark.parametrize(
    "waits",
    [
        pytest.param(lambda i: 2.9, id="a loader that is quick enough"),
        pytest.param(lambda i: 10 * (i < 20), id="workers that start"),
        pytest.param(lambda i: 10 * (i % 50 == 0), id="a single slow file"),
    ],
)
def test_no_warning(clock, caplog, waits):
    train(clock, waits, 200)
    assert not warnings(caplog)


def test_line_in_the_log(caplog):
    with EventStorage() as storage, caplog.at_level(logging.INFO, "detectron2"):
        printer = MetricPrinter(max_iter=10)
        printer.write()
        assert "images/s" not in caplog.text
        storage.step()
        storage.put_scalars(images_per_second=12.345, data_share=0.25, total_loss=1.5)
        printer.write()
    line = caplog.records[-1].getMessage()
    assert "total_loss: 1.5" in line and line.endswith("images/s: 12.35  data: 25%")
