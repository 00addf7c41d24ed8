"""A name -> a pretrained network, its layers, its partition, and its stages."""
