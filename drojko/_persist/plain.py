"""What model files of scikit-learn's pipelines may name beyond what skops knows, by exact names.

Each holds numbers and settings and no code of its own, or is a function of its arguments that
writes nothing: metrics, scores of columns, ufuncs' relatives.
"""

__all__ = ["PLAIN"]

_NAMES = {
    "": "builtins.object functools.partial",
    "numpy": "asarray clip dtype nan_to_num number round",
    "sklearn._loss.loss": "HalfTweedieLoss HalfTweedieLossIdentity",
    "sklearn.calibration": "_CalibratedClassifier _SigmoidCalibration _TemperatureScaling",
    "sklearn.compose._column_transformer": "make_column_selector",
    "sklearn.feature_selection._mutual_info": "mutual_info_classif mutual_info_regression",
    "sklearn.feature_selection._univariate_selection": "chi2 f_classif f_regression r_regression",
    "sklearn.gaussian_process._gpc": "_BinaryGaussianProcessClassifierLaplace",
    "sklearn.gaussian_process.kernels": "CompoundKernel ConstantKernel DotProduct ExpSineSquared "
    "Exponentiation Matern PairwiseKernel Product RBF RationalQuadratic Sum WhiteKernel",
    "sklearn.impute._iterative": "IterativeImputer _ImputerTriplet",
    "sklearn.metrics._classification": "accuracy_score balanced_accuracy_score brier_score_loss "
    "f1_score jaccard_score log_loss matthews_corrcoef precision_score recall_score",
    "sklearn.metrics._ranking": "average_precision_score roc_auc_score",
    "sklearn.metrics._regression": "explained_variance_score max_error mean_absolute_error "
    "mean_absolute_percentage_error mean_squared_error mean_squared_log_error "
    "median_absolute_error r2_score root_mean_squared_error root_mean_squared_log_error",
    "sklearn.metrics._scorer": "_CurveScorer _PassthroughScorer _Scorer",
    "sklearn.model_selection._split": "GroupKFold KFold RepeatedKFold RepeatedStratifiedKFold "
    "ShuffleSplit StratifiedGroupKFold StratifiedKFold StratifiedShuffleSplit TimeSeriesSplit",
    "sklearn.multiclass": "_ConstantPredictor",
    "sklearn.neural_network._stochastic_optimizers": "AdamOptimizer SGDOptimizer",
    "sklearn.utils._bunch": "Bunch",
    "sklearn.utils._metadata_requests": "MetadataRequest MethodMetadataRequest",
    "sklearn.utils.validation": "check_array",
}
PLAIN = tuple(
    f"{home}.{name}" if home else name for home, names in _NAMES.items() for name in names.split()
)
