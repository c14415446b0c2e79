"""Readable names of the emoji subgroups, providers and categories, for captions and class names."""

SUBGROUP_NAMES = {
    "arts & crafts": "arts and crafts",
    "award-medal": "award or medal",
    "game": "game or toy",
    "animal-bug": "insect",
    "animal-marine": "sea animal",
    "animal-mammal": "mammal",
    "animal-bird": "bird",
    "animal-reptile": "reptile",
    "animal-amphibian": "amphibian",
    "plant-other": "plant",
    "plant-flower": "flower",
    "skin-tone": "skin tone",
    "country-flag": "country flag",
    "subdivision-flag": "regional flag",
    "food-fruit": "fruit",
    "food-vegetable": "vegetable",
    "food-prepared": "prepared food",
    "food-asian": "Asian food",
    "food-marine": "seafood",
    "food-sweet": "sweet food",
    "book-paper": "books and paper",
    "light & video": "light and video",
    "musical-instrument": "musical instrument",
    "other-object": "everyday object",
    "body-parts": "body part",
    "hand-fingers-closed": "hand with closed fingers",
    "hand-fingers-open": "hand with open fingers",
    "hand-fingers-partial": "hand with some fingers raised",
    "hand-prop": "hand holding something",
    "hand-single-finger": "hand with one finger",
    "person-activity": "activity",
    "person-fantasy": "fantasy character",
    "person-gesture": "gesture",
    "person-resting": "person resting",
    "person-role": "profession or role",
    "person-sport": "athlete",
    "person-symbol": "symbol of people",
    "face-affection": "affectionate face",
    "face-concerned": "worried face",
    "face-costume": "costumed face",
    "face-glasses": "face with glasses",
    "face-hand": "face with a hand",
    "face-hat": "face with a hat",
    "face-negative": "angry face",
    "face-neutral-skeptical": "neutral or sceptical face",
    "face-sleepy": "sleepy face",
    "face-smiling": "smiling face",
    "face-tongue": "face with tongue out",
    "face-unwell": "unwell face",
    "alphanum": "letters and numbers",
    "av-symbol": "media player button",
    "geometric": "geometric shape",
    "math": "mathematics",
    "other-symbol": "symbol",
    "punctuation": "punctuation mark",
    "transport-sign": "traffic or public sign",
    "warning": "warning sign",
    "zodiac": "zodiac sign",
    "place-building": "building",
    "place-geographic": "landscape",
    "place-map": "map",
    "place-other": "place",
    "place-religious": "religious place",
    "sky & weather": "sky and weather",
    "time": "clock or time",
    "transport-air": "air transport",
    "transport-ground": "ground transport",
    "transport-water": "water transport",
}

PROVIDER_NAMES = {
    "alibabacloud": "Alibaba Cloud",
    "aws": "AWS",
    "azure": "Azure",
    "digitalocean": "DigitalOcean",
    "elastic": "Elastic",
    "firebase": "Firebase",
    "gcp": "Google Cloud",
    "generic": "generic infrastructure",
    "gis": "geographic software",
    "ibm": "IBM Cloud",
    "k8s": "Kubernetes",
    "oci": "Oracle Cloud",
    "onprem": "on-premises software",
    "openstack": "OpenStack",
    "outscale": "Outscale",
    "programming": "programming",
    "saas": "software as a service",
}

# One category has several folder names, over the providers and within one.
CATEGORY_OF_FOLDER = {
    "aimachinelearning": "ml",
    "databases": "database",
    "networking": "network",
    "migrate": "migration",
    "managementgovernance": "management",
    "enterprisesearch": "search",
    "auth": "identity",
    "chat": "communication",
    "appservices": "application",
    "applications": "application",
    "containers": "container",
    "containerservices": "container",
    "monitor": "monitoring",
    "observability": "monitoring",
    "newicons": "miscellaneous",
    "other": "miscellaneous",
    "others": "miscellaneous",
    "azureecosystem": "miscellaneous",
    "menu": "general",
    "base": "general",
    "blank": "general",
}
VAGUE_CATEGORIES = frozenset({"general", "miscellaneous"})

CATEGORY_NAMES = {
    "apiproxies": "API proxy",
    "applicationlifecycle": "application lifecycle",
    "ar": "augmented reality",
    "azurestack": "Azure Stack",
    "baremetal": "bare metal",
    "cd": "continuous delivery",
    "cdn": "content delivery",
    "ci": "continuous integration",
    "cli": "command line",
    "clusterconfig": "cluster configuration",
    "controlplane": "control plane",
    "cost": "cost management",
    "crm": "customer relations",
    "devtools": "developer tools",
    "dns": "DNS",
    "enduser": "end user computing",
    "etl": "data pipeline",
    "extentions": "extensions",
    "filesharing": "file sharing",
    "game": "game development",
    "hybridmulticloud": "hybrid cloud",
    "iac": "infrastructure as code",
    "infra": "infrastructure",
    "inmemory": "in-memory store",
    "iot": "internet of things",
    "mixedreality": "mixed reality",
    "ml": "machine learning",
    "mlops": "machine learning operations",
    "multiregion": "multi-region",
    "nfv": "network functions",
    "ogc": "open geospatial standard",
    "os": "operating system",
    "podconfig": "pod configuration",
    "rbac": "access control",
    "sharedservices": "shared services",
    "tracing": "distributed tracing",
    "vcs": "version control",
    "workloadprovisioning": "workload provisioning",
}


def readable(value: str, names: dict[str, str]) -> str:
    """The readable form of a label: from the table, or itself with spaces for hyphens and `and` for `&`."""
    return names.get(value, value.replace("_", " ").replace("-", " ").replace("&", "and"))


def group_name(group: str) -> str:
    """`People & Body` as `people and body`."""
    return group.replace("&", "and").lower()


def subgroup_name(subgroup: str) -> str:
    """`face-smiling` as `smiling face`."""
    return readable(subgroup, SUBGROUP_NAMES)


def provider_name(provider: str) -> str:
    """`gcp` as `Google Cloud`."""
    return readable(provider, PROVIDER_NAMES)


def category_name(category: str) -> str:
    """`ml` as `machine learning`."""
    return readable(category, CATEGORY_NAMES)
