"""What a layer range of a model costs on a GPU: memory, and time by the roofline model.

Works from shapes and published figures alone; knows nothing of tensors, sockets or clocks. The
roofline model: Williams, Waterman and Patterson, "Roofline: An Insightful Visual Performance Model
for Multicore Architectures", CACM 52(4), 2009.
"""
