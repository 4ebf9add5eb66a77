"""A kubelet as far as a device plugin meets it."""

from xelink.simulators.kubelet.admission import AdmissionError, AdmittedPod
from xelink.simulators.kubelet.kubelet import Kubelet

__all__ = ["AdmissionError", "AdmittedPod", "Kubelet"]
