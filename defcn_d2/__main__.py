"""``python -m defcn_d2``: Detectron2's environment report, with the line of this package."""

from detectron2.utils.collect_env import collect_env_info

from .environment import add_to_environment_report

if __name__ == "__main__":
    add_to_environment_report()
    print(collect_env_info())
