"""The words of a report, for a reader who is new to them."""

GLOSSARY = {
    "Score": "What a model says of an image without knowing its original (no-reference image quality assessment): "
    "0 for the worst to 100 for the best.",
    "MOS": "Mean opinion score: the label of an image, from 0 (bad) to 100 (excellent). In a data set with human "
    "labels, the average of what people said.",
    "SRCC": "Spearman's rank correlation: does the model put the images in the right order? 1: exactly, 0: not at all, "
    "-1: the order is reversed.",
    "PLCC": "Pearson's linear correlation: do scores rise in proportion with the labels? 1: on a straight line, "
    "0: no relation, -1: they fall instead.",
    "RMSE": "Root mean square error: how many points of 100 the scores are off, typically. 0 is best.",
    "Attack": "A search for a tiny change of the image that changes its score a lot, with full knowledge of the model.",
    "Radius": "The most that an attack may change any colour value of any pixel; 1/255 is one grey level of a usual "
    "image file.",
    "FGSM": "Fast gradient sign method: one step of the whole radius, in each pixel the way that moves the score most.",
    "PGD": "Projected gradient descent: many small steps of that kind that together stay inside the radius. Stronger "
    "than FGSM, and therefore the one to judge by.",
    "Own clean scores": "Comparing attacked scores with the model's own scores before the attack shows how steady it "
    "is, apart from how right it was.",
    "SSIM": "Structural similarity of the image and its attacked twin: 1 is identical, and the closer to 1, the harder "
    "the attack is to see.",
    "95 % interval": "Where the number would mostly fall had other test images been drawn (percentile bootstrap over "
    "images). It does not cover training again with another seed.",
    "Integral robustness": "The mean height of the curve of SRCC over the radius, from no attack to the largest one. 1 "
    "is a ranking that no radius disturbs. Comparable only between attacks with the same radii.",
    "R": "Mean logarithm (natural) of how far a score could have moved on 0..100, over how far the attack moved it. 0: "
    "as far as possible; every point more is a change 2.7 times as small. It does not ask whether the score was right.",
    "Score landscape": "The score of one image that is moved along two directions at once: one that raises the score "
    "fastest, and a random one. A robust model's is flat in both.",
    "Masked gradient": "A gradient that is zero or leads nowhere. Attacks that follow it fail although the scores "
    "could be moved, and a weak model looks robust.",
    "Gradient vanished": "The attack follows the gradient of the score. Where that is exactly zero it is blind, and "
    "its failure says nothing about robustness.",
}
