"""CIFAR-10 and CIFAR-100 in their binary version, each published as one tar.gz.

A. Krizhevsky, Learning multiple layers of features from tiny images (2009),
https://www.cs.toronto.edu/~kriz/cifar.html, which gives the MD5 of the archives (binary version:
c32a1d4ab5d03f1284b67883e8d87530 and 03b5dce01913d631647c71ecec9e9cb8). The SHA-256 of the archives
are those that other data loaders have pinned (MLDatasets.jl), those of the files in them are from
torchvision-ruby. Mean and standard deviation are of the training pixels scaled to [0, 1].
"""

from __future__ import annotations

from data.catalogue.dataset_facts import ArchiveFacts, DatasetFacts, FileFacts

MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)
CLASSES_10 = "airplane automobile bird cat deer dog frog horse ship truck"
CLASSES_100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain
plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
LICENCE = "no licence given, A. Krizhevsky, V. Nair, G. Hinton"

CIFAR10 = DatasetFacts(
    name="cifar10",
    files={
        f"train_{number}": FileFacts(name=f"data_batch_{number}.bin", sha256=digest)
        for number, digest in enumerate(
            (
                "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
                "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
                "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
                "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
                "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
            ),
            start=1,
        )
    }
    | {
        "test": FileFacts(
            name="test_batch.bin",
            sha256="8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
        )
    },
    mirrors=MIRRORS,
    num_train=50_000,
    num_test=10_000,
    image_shape=(32, 32),
    channels=3,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    classes=tuple(CLASSES_10.split()),
    licence=LICENCE,
    archive=ArchiveFacts(
        name="cifar-10-binary.tar.gz",
        num_bytes=170_052_171,
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        folder="cifar-10-batches-bin",
        members=(*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"),
    ),
    cifar_labels=1,
)

CIFAR100 = DatasetFacts(
    name="cifar100",
    files={
        "train": FileFacts(
            name="train.bin",
            sha256="f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29",
        ),
        "test": FileFacts(
            name="test.bin",
            sha256="d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a",
        ),
    },
    mirrors=MIRRORS,
    num_train=50_000,
    num_test=10_000,
    image_shape=(32, 32),
    channels=3,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    classes=tuple(CLASSES_100.split()),
    licence=LICENCE,
    archive=ArchiveFacts(
        name="cifar-100-binary.tar.gz",
        num_bytes=168_513_733,
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        folder="cifar-100-binary",
        members=("train.bin", "test.bin"),
    ),
    cifar_labels=2,
)
