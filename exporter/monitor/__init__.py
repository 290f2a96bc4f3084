"""The monitor stage: a model that is being trained comes in, numbers about its kernel go out, again and again.

It knows of no Keras: `exporter.callbacks` calls it from there.

| module | alone knows |
| --- | --- |
| `sample` | which examples are followed, and how they fit the model |
| `kernel` | the kernel of a model with the weights that it has now, traced once |
| `measurement` | the numbers of a kernel |
| `account` | whether there is time for one more |
| `events` | TensorBoard's files |
"""
