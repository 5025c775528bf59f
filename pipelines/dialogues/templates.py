"""What users ask, per task. Style ``authors`` has the question texts of the authors' evaluation scripts
(github.com/bytedance/Sa2VA, projects/samtok/evaluation); the others are ours.

Answers are in ``style.py``. ``{phrase}`` is an expression or a class, ``{mask}`` the words of one mask.
"""

QUESTIONS: dict[str, tuple[str, ...]] = {
    "res": (
        "Segment {phrase}.",
        "Which object is meant by: {phrase}?",
        "Mark this in the image: {phrase}.",
        "Give the mask of {phrase}.",
        "I am looking for this: {phrase}. Where is it?",
    ),
    "gres": (
        "Segment everything that fits: {phrase}.",
        "Which objects, if any, match this description: {phrase}?",
        "Mark all of this in the image, if it is there: {phrase}.",
        "Give one mask for every object that is meant by: {phrase}.",
        "Is this in the image, and where: {phrase}?",
    ),
    "grounding": (
        "Locate {phrase}.",
        "Find the one object that this describes: {phrase}.",
        "Point out {phrase} in the picture.",
        "Where exactly is {phrase}?",
    ),
    "gcg": (
        "Describe the image and mark every object that you name.",
        "What is in this picture? Put its mask behind each thing you mention.",
        "Write a short caption with the masks of what it talks about.",
        "Tell me what you see, and show where each part of it is.",
    ),
    "psg": (
        "List who does what to whom in this image, with masks.",
        "Which relations between objects can be seen? Give subject, predicate and object, with masks.",
        "Write down the scene graph of this image.",
        "Name the pairs of objects that have to do with each other, and how.",
    ),
    "instances": (
        "Segment every {phrase}.",
        "Give one mask for each object of the class {phrase}.",
        "Find all objects of this kind: {phrase}.",
        "Which objects belong to the class {phrase}? Mark each of them.",
    ),
    "every_object": (
        "Segment every object in the image.",
        "Give one mask for each object that you see.",
        "Mark all objects, each by itself.",
    ),
    "region_caption": (
        "What is this: {mask}?",
        "Describe the region {mask}.",
        "Tell me about the object {mask} in detail.",
        "Write a caption for {mask}.",
    ),
    "relation": (
        "Segment the thing that is {predicate} {mask}.",
        "What is {predicate} {mask}? Mark it.",
        "Give the mask of whatever is {predicate} {mask}.",
        "And which objects are {predicate} {mask}?",
    ),
}
"""Questions of ours; region questions and dialogues bring their own."""

AUTHORS: dict[str, str] = {
    "res": "Please segment {phrase} in this image.",
    "gres": "Please segment {phrase} in this image.",
    "grounding": ("Please carefully check the image and detect the object this sentence describes: {phrase}"),
    "gcg": (
        "Could you please give me a brief description of the image? Please respond with interleaved "
        "segmentation masks for the corresponding parts of the answer."
    ),
    "psg": (
        "{candidates}Create a scene graph by identifying triplets of <subject, predicate, object>. "
        "Focus on the most prominent interactions."
    ),
    "region_caption": "Given a detailed description of this region {mask}.",
}
"""Questions of the authors. Tasks that are not here have none, and are asked in our words."""

PSG_CANDIDATES = "CANDIDATE CATEGORIES: \n{{{categories}}}\nCANDIDATE PREDICATES: \n{{{predicates}}}\n"
"""The authors' question has the lists in braces."""

HINTS = {
    "words": "",
    "sentence": " Answer with a sentence.",
    "json": " Answer with a JSON list.",
    "authors": "",
}
"""What follows a question of ours, so that it says in which style it is to be answered."""

HINTED = ("res", "gres", "grounding", "instances", "every_object", "relation")
"""Tasks whose answers are written in all styles."""

NO_TARGET = "No target."
NO_TARGET_SENTENCES = (
    "Nothing in the image fits that.",
    "There is no such object here.",
    "I cannot find that in the image.",
)
ONE_SENTENCES = ("It is {masks}.", "Here it is: {masks}.", "That is {masks}.")
MANY_SENTENCES = ("These are {masks}.", "There are {count} of them: {masks}.", "Here they are: {masks}.")
