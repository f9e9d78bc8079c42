"""Classes that are rare or not there, and images without objects."""

from doctor_sets import CATS, DOGS, found, keys, write


def test_nothing_is_found_in_good_data(tmp_path):
    train = write(tmp_path / "train", {"a.png": CATS + DOGS, "b.png": DOGS}, 1)
    val = write(tmp_path / "val", {"a.png": CATS + DOGS}, 2)
    assert found(*keys("TRAIN", train), *keys("VAL", val)) == []


def test_few_objects_and_none(tmp_path):
    classes = ("cat", "dog", "eel")
    train = write(tmp_path / "train", {"a.png": CATS[:3] + DOGS, "b.png": DOGS}, 1, classes)
    assert found(*keys("TRAIN", train)) == [
        "warning: TRAIN: classes without objects: 1, first 'eel' (0); add images of them, or take "
        "them out of the classes",
        "warning: TRAIN: classes with fewer than 20 objects: 1, first 'cat' (3); add images of "
        "them, or show these more often, DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler",
    ]


def test_classes_that_a_split_lacks(tmp_path):
    train = write(tmp_path / "train", {"a.png": CATS}, 1)
    val = write(tmp_path / "val", {"a.png": DOGS}, 2)
    assert found(*keys("TRAIN", train), *keys("VAL", val)) == [
        "error: TEST: classes that no image to train with has: 1, first 'dog' (20); move images of "
        "them to the training data",
        "warning: TRAIN: classes without objects: 1, first 'dog' (0); add images of them, or take "
        "them out of the classes",
        "warning: TEST: classes to train with that have no objects: 1, first 'cat' (0); move "
        "images of them there, as their AP is no number",
    ]


def test_evaluation_data_alone(tmp_path):
    assert found(*keys("VAL", write(tmp_path / "val", {"a.png": DOGS}))) == []


def test_images_without_objects(tmp_path):
    train = write(tmp_path / "train", {"a.png": CATS + DOGS, "b.png": [], "c.png": []}, 1)
    empty = "warning: TRAIN: images without objects: 2, first 'b.png', 'c.png'; they are "
    key = "DATALOADER.FILTER_EMPTY_ANNOTATIONS"
    assert found(*keys("TRAIN", train)) == [f"{empty}left out, as {key} is True"]
    assert found(*keys("TRAIN", train), key, False) == [
        f"{empty}kept as background, as {key} is False"
    ]


def test_other_classes(tmp_path):
    """Of registered data; those of DATASETS.REGISTER are compared before."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    record = {"file_name": str(tmp_path / "a.png"), "width": 96, "height": 64, "image_id": 1}
    write(tmp_path, {"../a.png": CATS})
    sets = {"doctor_a": ["cat", "dog"], "doctor_b": ["dog", "cat"], "doctor_c": ["cat", "eel"]}
    try:
        for name, classes in sets.items():
            DatasetCatalog.register(name, lambda: [{**record, "annotations": []}])
            MetadataCatalog.get(name).thing_classes = classes
        number = ["MODEL.DEFCN.NUM_CLASSES", 2, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False]
        for other, differing in (
            ("doctor_b", "1, first another order"),
            ("doctor_c", "2, first dog, eel"),
        ):
            sets_given = ["DATASETS.TRAIN", "('doctor_a',)", "DATASETS.TEST", f"('{other}',)"]
            assert (
                f"error: TEST: classes other than those of TRAIN: {differing}; give both the same "
                "classes"
            ) in found(*number, *sets_given)
    finally:
        for name in sets:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
