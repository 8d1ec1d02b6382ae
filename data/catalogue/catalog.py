"""Every published data set by name; here the three that follow MNIST's files.

Sources: the publishers' pages (http://yann.lecun.com/exdb/mnist/,
https://github.com/zalandoresearch/fashion-mnist, http://codh.rois.ac.jp/kmnist/). Mean and standard
deviation are of the training pixels scaled to [0, 1].
"""

from __future__ import annotations

from pathlib import Path

from data.catalogue.catalog_cifar import CIFAR10, CIFAR100
from data.catalogue.catalog_emnist import EMNIST
from data.catalogue.dataset_facts import ROLES, DatasetFacts, FileFacts


def _files(*facts: tuple[int, str, str | None]) -> dict[str, FileFacts]:
    names = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )
    return {
        role: FileFacts(name=name, gz_bytes=size, gz_sha256=gz, sha256=plain)
        for role, name, (size, gz, plain) in zip(ROLES, names, facts, strict=True)
    }


MNIST = DatasetFacts(
    name="mnist",
    files=_files(
        (
            9912422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        (
            28881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        (
            1648877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        (
            4542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    num_train=60_000,
    num_test=10_000,
    image_shape=(28, 28),
    mean=(0.1307,),
    std=(0.3081,),
    classes=tuple("0123456789"),
    licence="CC BY-SA 3.0, Y. LeCun, C. Cortes, C. Burges",
    embedded=Path(__file__).resolve().parents[1] / "embedded" / "mnist",
)

FASHION_MNIST = DatasetFacts(
    name="fashion_mnist",
    files=_files(
        (26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84", None),
        (29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845", None),
        (4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073", None),
        (5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5", None),
    ),
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    ),
    num_train=60_000,
    num_test=10_000,
    image_shape=(28, 28),
    mean=(0.2860,),
    std=(0.3530,),
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    licence="MIT, Zalando SE",
)

KMNIST = DatasetFacts(
    name="kmnist",
    files=_files(
        (18165135, "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4", None),
        (29497, "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17", None),
        (3041136, "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5", None),
        (5120, "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c", None),
    ),
    mirrors=(
        "https://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
    ),
    num_train=60_000,
    num_test=10_000,
    image_shape=(28, 28),
    mean=(0.1918,),
    std=(0.3483,),
    classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    licence="CC BY-SA 4.0, KMNIST Dataset (created by CODH), adapted from Kuzushiji Dataset",
)

CATALOG = {
    facts.name: facts for facts in (MNIST, FASHION_MNIST, KMNIST, *EMNIST, CIFAR10, CIFAR100)
}
