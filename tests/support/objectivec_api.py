"""Declarations of ONNX Runtime's Objective-C API that docs/deploy-ios.md uses, and the names that Swift gives them.

Selectors were read in objectivec/include of microsoft/onnxruntime, up to the ort_session.h that has methods "Available
since 1.30". Swift names are those of Apple's importer, as public Swift programs use them.
"""

from __future__ import annotations

import dataclasses

_SESSION = "objectivec/include/ort_session.h"
_VALUE = "objectivec/include/ort_value.h"
_ENVIRONMENT = "objectivec/include/ort_env.h"
_ENUMS = "objectivec/include/ort_enums.h"


@dataclasses.dataclass(frozen=True)
class ObjectiveCMethod:
    """A method.

    Attributes:
        owner: its class.
        selector: with a colon behind every part that takes an argument.
        swift: base name and argument labels, `init` for initializers; "_" where there is no label.
        file: where it was read.
    """

    owner: str
    selector: str
    swift: str
    file: str


OBJECTIVEC_API = (
    ObjectiveCMethod("ORTEnv", "initWithLoggingLevel:error:", "init(loggingLevel:)", _ENVIRONMENT),
    ObjectiveCMethod("ORTSessionOptions", "initWithError:", "init()", _SESSION),
    ObjectiveCMethod(
        "ORTSessionOptions",
        "registerCustomOpsUsingFunctionPointer:error:",
        "registerCustomOps(functionPointer:)",
        _SESSION,
    ),
    ObjectiveCMethod("ORTSessionOptions", "setIntraOpNumThreads:error:", "setIntraOpNumThreads(_:)", _SESSION),
    ObjectiveCMethod(
        "ORTSessionOptions", "addConfigEntryWithKey:value:error:", "addConfigEntry(withKey:value:)", _SESSION
    ),
    ObjectiveCMethod(
        "ORTSession", "initWithEnv:modelPath:sessionOptions:error:", "init(env:modelPath:sessionOptions:)", _SESSION
    ),
    ObjectiveCMethod("ORTSession", "inputNamesWithError:", "inputNames()", _SESSION),
    ObjectiveCMethod(
        "ORTSession", "runWithInputs:outputs:runOptions:error:", "run(withInputs:outputs:runOptions:)", _SESSION
    ),
    ObjectiveCMethod(
        "ORTValue", "initWithTensorData:elementType:shape:error:", "init(tensorData:elementType:shape:)", _VALUE
    ),
)
#: Enumerators, as Objective-C spells them → as Swift does.
OBJECTIVEC_ENUMERATORS = {
    "ORTLoggingLevelWarning": "warning",
    "ORTTensorElementDataTypeFloat": "float",
    "ORTTensorElementDataTypeInt64": "int64",
    "ORTTensorElementDataTypeUInt8": "uInt8",
}
#: Commits at which the headers were read.
HEADERS = {
    _SESSION: "e4c5073c3d61c751347d2f1782234994849b760c, 57a63af705f82656fe0fa00c567de534c4adbe0d, and 1.30's",
    _VALUE: "9c69a3b7989a3853c62588e59f8fb0fbcd7bd07a",
    _ENVIRONMENT: "06a2ad759e4b40c4abecdc2928c605e10496fa78",
    _ENUMS: "01de0994602c99143fd9b988836875f319e26db0",
}
