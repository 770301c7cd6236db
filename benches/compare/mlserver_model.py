"""The same models as runtimes of MLServer; the model's own name says which."""

import io

import numpy as np
from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from pipelines import PIPELINES


class Pipeline(MLModel):
    async def load(self):
        self.pipeline = PIPELINES[self.name]()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        answer = getattr(self, f"_{self.name}")(payload.inputs[0])
        return InferenceResponse(model_name=self.name, outputs=answer)

    def _tabular(self, tensor):
        labels, probabilities = self.pipeline(NumpyCodec.decode_input(tensor))
        return [NumpyCodec.encode_output("label", labels), NumpyCodec.encode_output("probabilities", probabilities)]

    def _image(self, tensor):
        (photo,) = Base64Codec.decode_input(tensor)
        labels, probabilities = self.pipeline(io.BytesIO(photo))
        return [StringCodec.encode_output("label", labels), NumpyCodec.encode_output("probability", np.asarray(probabilities))]

    _digits = _imagenet = _image

    def _minilm(self, tensor):
        return [NumpyCodec.encode_output("embedding", self.pipeline(StringCodec.decode_input(tensor)))]
