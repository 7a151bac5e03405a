from distill.api import collect_sessions as collect_sessions
from distill.api import compare_models as compare_models
from distill.api import curate_sessions as curate_sessions
from distill.api import expand_tasks as expand_tasks
from distill.api import run_recipe as run_recipe
from distill.api import train_student as train_student
from distill.catalogue import load_recipe as load_recipe
from distill.errors import DistillError as DistillError
from distill.recipe import Recipe as Recipe
from distill.run_folder import Comparison as Comparison
from distill.run_folder import JournalCounts as JournalCounts
from distill.run_folder import Measured as Measured
from distill.run_folder import RunFolder as RunFolder
from distill.run_folder import open_run as open_run
from distill.types import Completion as Completion
from distill.types import Failure as Failure
from distill.types import Message as Message
from distill.types import Request as Request
from distill.types import Sampling as Sampling
from distill.types import Session as Session
from distill.types import Task as Task
from distill.types import Verdict as Verdict

__version__: str
