"""Write the pages of docs/results, and draw their figures, from the result files there.

python docs/reproduction.py
"""

from pathlib import Path

from fedgen.reproduce import page

if __name__ == "__main__":
    for result in sorted((Path(__file__).parent / "results").glob("*.json")):
        for made in page.write(result):
            print(made)
