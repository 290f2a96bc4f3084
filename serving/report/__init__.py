"""One page about an export and a data set: the kernel, its spectrum, its layers, neighbours and predictions.

| module | in | out | alone knows |
| --- | --- | --- | --- |
| `main` | flags | a page, an exit code | the terminal |
| `sample` | a data set | those of its examples that the page is about | |
| `asking`, `answers` | SavedModels, examples | kernels, outputs, predictions, neighbours as arrays | TensorFlow |
| `targets` | `y` | classes or numbers | |
| `numbers` | arrays | what the page says, in float64 | NumPy alone |
| `pictures` | an example | what people see of it: an image, a text, numbers | PNG |
| `figures` | numbers | figures as Plotly takes them, in names of colours | Plotly's JSON |
| `sections`, `gallery`, `predictions` | all of these | sections: a sentence, a figure, a table | what is worth saying |
| `page` | sections | one HTML file, `page.css` and `page.js` in it | HTML |

Formulas of spectra are in `serving.shared.spectrum`, of accuracy and calibration in `serving.answers.quality`. Needs
the extra ntk-exporter[report], and neither JAX nor Keras.
"""
