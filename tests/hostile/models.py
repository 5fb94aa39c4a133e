"""Encoders in folders, good and bad, and the code that must not run."""

import json
import os

from transformers import AutoConfig, AutoModel

from trainables.encoders import load_encoder


class Payload:
    """Unpickling it makes a folder."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


def write_encoder(folder):
    assets = load_encoder("bert-tiny", ["the plot was dull", "a fine film"])
    folder.mkdir()
    assets.write_tokenizer(folder)
    AutoModel.from_config(AutoConfig.for_model(**assets.config)).save_pretrained(folder)
    return folder


def change(folder, name="config.json", **values):
    """Set values in a JSON file of a model, which is made if it is absent."""
    path = folder / name
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))


def add_code(folder, proof, model_type=None):
    """Code of the model's own, which Transformers runs where it is told to trust it."""
    code = f"import os\nos.makedirs({str(proof)!r}, exist_ok=True)\n"
    classes = "from transformers import BertConfig as C, BertModel as M, BertTokenizer as T\n"
    (folder / "evil.py").write_text(code + classes)
    auto_map = {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoTokenizer": ["evil.T", None]}
    own_type = {"model_type": model_type} if model_type else {}
    change(folder, auto_map=auto_map, **own_type)
    change(folder, "tokenizer_config.json", auto_map=auto_map)
