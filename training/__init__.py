"""One run: its folder, optimizer, meters and log, and the trained networks that it starts from.

    run = training.Run(opt, folder, student, h_test, train_loader, test_loader, facts)
    engine.hooks['on_start'] = run.start
    with run:
        engine.train(h, train_loader, opt.epochs, run.optimizer)
"""
from training.meters import Meters, evaluate, n_damaged
from training.progress import Pace
from training.run import Run, sgd
from training.trained import folder_of, load, load_teacher

__all__ = ['Meters', 'Pace', 'Run', 'evaluate', 'folder_of', 'load', 'load_teacher', 'n_damaged', 'sgd']
